"""SmoothInv: the planted trigger is inverted from one image and works on the others; a clean network gives no alarm."""

from __future__ import annotations

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

K, SIDE = 5, 6


class Rows(nn.Module):
    """Class y is a bright row y; a bright last row leads to class `target`, if there is one."""

    def __init__(self, target: int | None) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(12.0))
        self.target = target

    def forward(self, x: Tensor) -> Tensor:
        rows = x.mean(dim=(1, 3))
        z = self.scale * rows[:, :K]
        if self.target is not None:
            z = z + 60 * rows[:, K:] * torch.eye(K, device=x.device)[self.target]
        return z


def rows_of(n: int = 40) -> ImageSet:
    y = torch.arange(n) % K
    x = 40 * Draws(0, torch.arange(n)).uniform((3, SIDE, SIDE))
    x[torch.arange(n), :, y] += 150
    x[:, :, K] = 0
    return ImageSet(x.round().to(torch.uint8), y, torch.arange(n), K, "rows")


def smooth(**parameters: Any) -> Any:
    return detector("smoothinv", **{"sigmas": [0.1], "noises": 4, "steps": 40, "eps": 1.2, **parameters})


def judged(target: int | None, **parameters: Any) -> Verdict:
    model = Network(Rows(target), num_classes=K)
    verdict = smooth(**parameters).judge(model, only(clean=rows_of()), victims.ONE)
    assert isinstance(verdict, Verdict)
    return verdict


def test_the_planted_trigger_is_inverted_from_one_image() -> None:
    verdict = judged(3)
    assert verdict.backdoored
    assert verdict.targets == (3,)
    bright = (verdict.triggers[3] - 0.5).mean(dim=(0, 2))
    assert int(bright.argmax()) == K
    asr, d = smooth().inverted(Network(Rows(3), num_classes=K).eval(), rows_of(), 0)
    assert float(asr[3]) > 0.95  # quality of the inversion
    assert float(d.flatten(1).norm(dim=1).max()) <= 1.2 + 1e-4


def test_a_clean_network_gives_no_alarm() -> None:
    verdict = judged(None)
    assert not verdict.backdoored
    assert verdict.targets == ()
    assert sorted(verdict.triggers) == [*range(K)]


def test_a_target_alone_is_inverted_as_in_a_batch() -> None:
    model, clean = Network(Rows(3), num_classes=K).eval(), rows_of()
    together = smooth(steps=10).inverted(model, clean, 0)
    alone = smooth(steps=10, together=1).inverted(model, clean, 0)
    torch.testing.assert_close(alone[1], together[1], rtol=1e-4, atol=1e-5)
    assert torch.equal(alone[0], together[0])
    assert torch.equal(smooth(steps=10).inverted(model, clean, 0)[1], together[1])


def test_the_quality_excludes_the_target_class_and_the_start() -> None:
    class Constant(Rows):
        def forward(self, x: Tensor) -> Tensor:
            y = (super().forward(x)).argmax(dim=1)
            return torch.eye(K)[torch.where(y == 2, 2, 0)] + 0 * super().forward(x)

    asr, _ = smooth(steps=1).inverted(Network(Constant(None), num_classes=K).eval(), rows_of(), 0)
    assert float(asr[0]) == pytest.approx(1 - 8 / 31, abs=1 / 31)  # class 2 does not go to 0; 32 others, one the start
    assert float(asr[2]) == 0  # images of class 2 do not count for target 2


def test_several_starts_and_sigmas_are_averaged_and_maximised() -> None:
    model, clean = Network(Rows(3), num_classes=K).eval(), rows_of()
    one, two = (smooth(steps=10, sigmas=[s]).inverted(model, clean, 0)[0] for s in (0.05, 0.2))
    both = smooth(steps=10, sigmas=[0.05, 0.2]).inverted(model, clean, 0)[0]
    torch.testing.assert_close(both, torch.maximum(one, two))
    many = smooth(steps=10, starts=3).inverted(model, clean, 0)[0]
    assert bool(((many >= 0) & (many <= 1)).all())


def test_smoothinv_needs_three_classes() -> None:
    model = Network(nn.Sequential(nn.Flatten(), nn.Linear(3, 2)), num_classes=2)
    with pytest.raises(NotApplicable, match="at least 3"):
        smooth().judge(model, only(), victims.ONE)
