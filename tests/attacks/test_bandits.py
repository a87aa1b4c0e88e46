"""Bandits: tiles, and what is looked at again."""

from __future__ import annotations

import torch
from siegebench.attacks.bandits import Bandits
from torch import Tensor

from siegebench import ops
from siegebench.classifier import Classifier, Network
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.threat import Norm
from tests import kit

from .planted import TwoClasses, both_norms, half_space, nearest_boundary, score


@both_norms
def test_tiles_pay_where_neighbours_agree(norm: Norm) -> None:
    coarse = Draws(3, torch.zeros(1, dtype=torch.long)).normal((3, 4, 4))[0].double()
    w = coarse.repeat_interleave(4, 1).repeat_interleave(4, 2)
    model = Network(TwoClasses(w, 500.0), num_classes=2).double().eval().requires_grad_(False)
    x = kit.grey_images(6, size=16).double()
    y = model(x).argmax(1)
    threat = score(norm, 0.05 if norm == "linf" else 1.0, 200)
    most = threat.eps * float(w.abs().sum() if norm == "linf" else w.norm())
    gain = {}
    for tile in (1, 4):
        x_adv, _ = kit.attack_with(Bandits(tile=tile), model, x, y, threat)
        gain[tile] = float((ops.margin(model(x_adv), y) - ops.margin(model(x), y)).mean()) / most
    assert gain[4] > 0.4
    assert gain[4] > gain[1] + 0.1


def test_bandits_looks_only_where_a_probe_was_wrong(linear: Classifier) -> None:
    x = kit.grey_images(12)
    y = linear(x).argmax(1)
    nearest = nearest_boundary(linear, x, y, "linf")
    threat = score("linf", 2.0 * float(nearest.max()))
    seen: list[tuple[int, bool]] = []

    class Seen(Classifier):
        num_classes = 10

        def forward(self, image: Tensor, draws: Draws | None = None) -> Tensor:
            z = linear(image)
            seen.append((len(image), bool((z.argmax(1) != y[0]).any())))
            return z

    one = Draws(0, torch.zeros(1, dtype=torch.long))
    Bandits(tile=1)(Oracle(Seen(), threat, one), x[:1], y[:1], threat, one)
    for (count, _), (before, wrong) in zip(seen[1:], seen, strict=False):
        if before == 2:
            assert count == (1 if wrong else 2)
    assert seen[-1] == (1, True)


def test_the_tiles_follow_the_granted_queries() -> None:
    granted, shape = torch.tensor([1, 100, 1000, 10_000, 768, 767]), (3, 32, 32)
    assert Bandits()._tiles(granted, shape, "linf").tolist() == [128, 8, 2, 2, 2, 4]
    assert Bandits()._tiles(granted, shape, "l2").tolist() == [64, 8, 2, 1, 2, 4]
    assert Bandits()._tiles(torch.tensor([10_000]), (3, 224, 224), "linf").tolist() == [4]
    assert Bandits(tile=3)._tiles(granted, shape, "linf").tolist() == [3] * 6
    # samples with different budgets in one batch fare as alone
    model, _ = half_space((3, 16, 16), b=500.0)
    x = kit.grey_images(3, size=16).double()
    y = model(x).argmax(1)
    threat, draws = score("linf", 0.05, 300), Draws(0, torch.arange(3))
    oracle = Oracle(model, threat, draws)
    oracle[torch.tensor([1])].repeat(280).logits(x[1:2].expand(280, -1, -1, -1))
    x_adv = Bandits()(oracle, x, y, threat, draws)
    for k, rest in enumerate((300, 20, 300)):
        own = Oracle(model, threat, draws[k : k + 1])
        alone = Bandits(queries=rest)(own, x[k : k + 1], y[k : k + 1], threat, draws[k : k + 1])
        torch.testing.assert_close(alone[0], x_adv[k], rtol=0, atol=1e-9)
