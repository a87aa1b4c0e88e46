"""K-Arm finds the planted target with a fraction of Neural Cleanse's passes, also between a pair of classes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from siegebench.classifier import Network
from siegebench.data import ImageSet
from siegebench.errors import NotApplicable
from siegebench.types import Verdict
from tests import victims

from .planted import detector, images, only
from .test_neural_cleanse import HONEST, PLANTED, Regions, dark, regions


def verdict_of(model: Network, **parameters: Any) -> Verdict:
    # all images are dark, so that a fifth of a pixel is too little for any region but the planted one
    arm = detector("k_arm", **{"bound": 0.002, "least": 3, "batch": 8, **parameters})
    verdict = arm.judge(model, only(clean=dark()), victims.ONE)
    assert isinstance(verdict, Verdict)
    return verdict


def test_k_arm_finds_the_planted_target() -> None:
    verdict = verdict_of(regions(PLANTED))
    assert verdict.backdoored
    assert verdict.targets == (3,)
    painted = (verdict.triggers[3] - 0.5).abs().amax(dim=0).flatten()
    assert set(painted.topk(2).indices.tolist()) == {45, 46}


def test_k_arm_gives_no_alarm_on_a_clean_network() -> None:
    verdict = verdict_of(regions(HONEST))
    assert not verdict.backdoored
    assert verdict.targets == ()
    assert verdict.score < 0


def test_the_same_seed_gives_the_same_verdict() -> None:
    one, two = (verdict_of(regions(PLANTED), rounds=5, steps=20) for _ in range(2))
    assert one.score == two.score
    assert all(torch.equal(one.triggers[t], two.triggers[t]) for t in one.triggers)


class Leaning(nn.Module):
    """Class 2 is the second choice for every image; class 0 is the first, or, if bright, class 1."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([2.0, 0, 1, -1, -2, -3, -4, -5, -6]))

    def forward(self, x: Tensor) -> Tensor:
        z = self.bias.expand(len(x), -1)
        one = torch.eye(z.shape[1], device=x.device)[1]
        return z + 9 * (x.mean(dim=(1, 2, 3)) > 0.5)[:, None] * one


def test_candidates_are_common_among_the_most_probable_classes() -> None:
    model = Network(Leaning(), num_classes=9)
    clean = images(18, high=60, classes=9)
    arm = detector("k_arm", top=0.2)  # two of nine
    found = arm.screened(model, clean, 0)
    assert [(a.source, a.target) for a in found] == [(-1, 0), (-1, 2)]
    assert len(arm.screened(model, clean, 0)[0].images) == 18
    more = detector("k_arm", top=0.2, least=4).screened(model, clean, 0)
    assert len(more) == 4


def test_pairs_are_candidates_where_no_class_is() -> None:
    class Cycle(nn.Module):
        """The label is the brightness; the class after it is its second choice."""

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            y = (x[:, 0, 0, 0] * 255 / 20).round().long()
            one = torch.eye(9, device=x.device)
            return self.scale * (2 * one[y] + one[(y + 1) % 9])

    y = torch.arange(27) % 9
    flat = (20 * y).to(torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4).contiguous()
    clean = ImageSet(flat, y, torch.arange(27), 9, "flat")
    found = detector("k_arm", top=0.2).screened(Network(Cycle(), num_classes=9), clean, 0)
    assert sorted((a.source, a.target) for a in found) == [(s, (s + 1) % 9) for s in range(9)]
    assert all(len(a.images) == 3 for a in found)


def test_a_pair_counts_only_if_the_way_back_needs_a_larger_trigger() -> None:
    pairs = {"least": 0, "common": 1.0, "common_pair": 0.0, "bound_pair": 0.04, "most": 6, "rounds": 4, "steps": 40}
    model, clean = regions(PLANTED), dark()
    arm = detector("k_arm.small", **pairs, ratio=2.0)
    towards = arm._arm(model, clean, 0, 3, 0)
    for _ in range(12):
        arm.pull(model, towards, 0)
    assert arm._one_way(model, clean, towards, 0) > 0
    assert detector("k_arm.small", **pairs, ratio=50.0)._one_way(model, clean, towards, 0) < 0


def test_k_arm_leaves_the_model_as_found() -> None:
    model = regions(PLANTED).train()
    verdict_of(model, steps=12)
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_k_arm_needs_two_classes() -> None:
    with pytest.raises(NotApplicable, match="at least 2"):
        verdict_of(Network(Regions([5]), num_classes=1))
