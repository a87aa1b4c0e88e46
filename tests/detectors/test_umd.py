"""UMD: the core-periphery score and its search in closed form; planted maps of several shapes are found."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from siegebench.classifier import Network
from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from siegebench.types import Verdict
from tests import victims

from .planted import detector, only

cores = pytest.importorskip("siegebench.detectors._cores")
K, SIDE = 5, 6


class Mapped(nn.Module):
    """Class y is a bright row y; a bright last row adds, for the sources of the map, its target's logit.

    The last row is the trigger: it is dark in every image, and a small change there is enough.
    """

    move: Tensor

    def __init__(self, table: dict[int, int], strength: float = 200.0) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([0.0, -0.5, -1, -2, -4]))  # some targets are harder than others
        move = torch.zeros(K, K)
        for s, t in table.items():
            move[s, t] = strength
        self.register_buffer("move", move)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.mean(dim=(1, 3))
        own = (8 * rows[:, :K]).softmax(dim=1)
        return 12 * rows[:, :K] + self.bias + rows[:, K:] * (own @ self.move)


def rows_of(n: int = 40) -> ImageSet:
    y = torch.arange(n) % K
    x = 40 * Draws(0, torch.arange(n)).uniform((3, SIDE, SIDE))
    x[torch.arange(n), :, y] += 150
    x[:, :, K] = 0
    return ImageSet(x.round().to(torch.uint8), y, torch.arange(n), K, "rows")


def judged(table: dict[int, int], **parameters: Any) -> Verdict:
    given = {"images": 4, "steps": 200, "lr": 0.004, **parameters}
    verdict = detector("umd", **given).judge(Network(Mapped(table), num_classes=K), only(clean=rows_of()), victims.ONE)
    assert isinstance(verdict, Verdict)
    return verdict


def found(table: dict[int, int], **parameters: Any) -> tuple[dict[int, int], Any]:
    """(the inferred map, the inference)"""
    given = {"images": 4, "steps": 200, "lr": 0.004, **parameters}
    umd = detector("umd", **given)
    pairs, inference = umd.inferred(Network(Mapped(table), num_classes=K).eval(), rows_of(), 0)
    return {int(s): int(t) for s, t in pairs.pairs[list(inference.core)].tolist()}, inference


def test_core_periphery_score_on_known_numbers() -> None:
    a = torch.tensor([[0.0, 0.8, 0.1], [0.6, 0, 0.3], [0.0, 0.2, 0]]).double()
    core = torch.tensor([0, 1])
    assert cores.cohesion(core, a) == pytest.approx(0.7 - (0.1 + 0.3) / 2)
    whole = cores.cohesion(torch.tensor([0, 1, 2]), a)
    assert whole == pytest.approx(min((0.7 + 0.05) / 2, (0.7 + 0.25) / 2, (0.05 + 0.25) / 2))


def test_each_candidate_is_scored_as_alone() -> None:
    g = torch.Generator().manual_seed(0)
    a = torch.rand(9, 9, generator=g).double().fill_diagonal_(0)
    core, free = torch.tensor([1, 4]), torch.tensor([0, 2, 8])
    scores = cores._with_each(core, free, a, (a + a.T) / 2)
    alone = [cores.cohesion(torch.cat([core, f[None]]), a) for f in free]
    torch.testing.assert_close(scores, torch.tensor(alone).double())


def test_search_finds_the_planted_core() -> None:
    sources = torch.arange(12) // 3  # four classes with three pairs each
    g = torch.Generator().manual_seed(1)
    a = 0.2 * torch.rand(12, 12, generator=g).double()
    planted = torch.tensor([1, 5, 9])
    a[planted[:, None], planted] = 0.9
    a.fill_diagonal_(0)
    core, h = cores.best_core(a, sources, 5)
    assert sorted(core.tolist()) == planted.tolist()
    assert h > 0.6


def test_inference_on_known_numbers() -> None:
    sizes = 1 / torch.tensor([10.0, 12, 1, 2, 3, 4, 5]).double()
    sources = torch.tensor([0, 1, 0, 1, 2, 2, 2])
    a = torch.zeros(7, 7).double()
    a[0, 1] = a[1, 0] = 1.0
    result = cores.infer(sizes, a, sources, 5, 0.05)
    assert sorted(result.core) == [0, 1]
    assert result.score == pytest.approx((10 - 3) / 1.4826)  # torch's median of two is the lower one
    assert result.theta == pytest.approx(2.3187, abs=1e-3)  # of 5 numbers: erf(theta / sqrt 2)^5 = 0.95
    alone = cores.infer(sizes, torch.zeros(7, 7).double(), sources, 5, 0.05)
    assert alone.core == (1,)
    assert math.isinf(alone.cohesion)


@pytest.mark.parametrize(
    "table", [{s: 2 for s in range(K) if s != 2}, {s: (s + 1) % K for s in range(K)}, {0: 3, 4: 1}]
)
def test_planted_maps_are_found(table: dict[int, int]) -> None:
    inferred, inference = found(table)
    true = inferred.items() & table.items()
    assert len(true) >= len(table) - 1  # the hardest source of a map may be left out
    assert len(inferred) - len(true) <= 1  # a source without a trigger of its own may follow that of another
    assert inference.score > inference.theta
    verdict = judged(table)
    assert verdict.backdoored
    assert set(verdict.targets) <= set(table.values())
    trigger = (verdict.triggers[verdict.targets[0]] - 0.5).mean(dim=(0, 2))
    assert int(trigger.argmax()) == K  # the last row


def test_a_single_planted_pair_is_found() -> None:
    inferred, inference = found({1: 4})
    assert inferred[1] == 4
    assert set(inferred.values()) == {4}  # another source may follow its trigger, which weakens the test
    assert inference.cohesion < 1


def test_a_clean_network_gives_no_alarm() -> None:
    verdict = judged({})
    assert not verdict.backdoored
    assert verdict.targets == ()
    assert sorted(verdict.triggers) == [*range(K)]


def test_a_pair_alone_is_inverted_as_in_a_batch() -> None:
    model = Network(Mapped({0: 3}), num_classes=K).eval()
    for mode, steps in (("pert", 40), ("patch", 12)):
        umd = detector("umd", mode=mode, images=4, steps=steps, lr=0.03)
        sources, x = umd._images(model, rows_of(), 0)
        together = umd.inverted(model, sources, x, 0)
        alone = detector("umd", mode=mode, images=4, steps=steps, lr=0.03, together=7).inverted(model, sources, x, 0)
        torch.testing.assert_close(alone.sizes, together.sizes, rtol=1e-4, atol=1e-5)


def test_patches_are_small_where_the_trigger_is() -> None:
    umd = detector("umd.patch", images=4, steps=80)
    table = {s: 2 for s in range(K) if s != 2}
    model = Network(Mapped(table), num_classes=K).eval()
    sources, x = umd._images(model, rows_of(), 0)
    pairs = umd.inverted(model, sources, x, 0)
    true = torch.tensor([table.get(int(s)) == int(t) for s, t in pairs.pairs])
    assert float(pairs.sizes[true].max()) < float(pairs.sizes[~true].min())
    assert pairs.m is not None
    torch.testing.assert_close(pairs.m.flatten(1).sum(dim=1).double(), pairs.sizes, rtol=1e-4, atol=1e-4)


def test_umd_needs_three_classes() -> None:
    model = Network(nn.Sequential(nn.Flatten(), nn.Linear(3, 2)), num_classes=2)
    with pytest.raises(NotApplicable, match="at least 3"):
        detector("umd").judge(model, only(), victims.ONE)
