"""Membership: planted losses, thresholds by hand, and a control at one half."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from siegebench import registry
from siegebench.classifier import Network
from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.threat import ThreatModel
from siegebench.types import Measure

membership: Any = pytest.importorskip("siegebench.measures.membership")
THREAT = ThreatModel(norm="linf", eps=0.1)


class _Brightness(nn.Module):
    """Class 0 with a confidence that grows with the brightness of the image."""

    def forward(self, x: Tensor) -> Tensor:
        z = 8 * x.flatten(1).mean(dim=1)
        return torch.stack([z, torch.zeros_like(z)], dim=1)


def found(inside: Tensor, outside: Tensor) -> dict[str, float]:
    """Metrics for training and test images of these brightnesses, all of class 0."""
    model = Network(_Brightness(), num_classes=2).eval()
    images = (inside * 255).round().to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4).contiguous()
    n = len(inside)
    data = ImageSet(images, torch.zeros(n).long(), torch.arange(n), 2, "toy")
    x = outside.view(-1, 1, 1, 1).expand(-1, 3, 4, 4).contiguous()
    measure: Any = registry.build(Measure, "membership")
    one, two = Draws(0, data.ids), Draws(0, torch.arange(len(x)))
    lesson = measure.learn(Oracle(model, THREAT, one), data, THREAT, one)
    result = measure(Oracle(model, THREAT, two), x, torch.zeros(len(x)).long(), THREAT, two, lesson)
    return dict(result["metrics"])


def test_members_with_small_losses_are_found_and_equal_ones_are_not() -> None:
    u = Draws(0, torch.arange(400)).uniform()
    apart = found(0.6 + 0.3 * u, 0.5 * u)
    assert apart["auroc_loss"] == apart["tpr_loss_1"] == 1.0
    assert "tpr_loss_0_1" not in apart  # 200 non-members: one in a thousand cannot be measured
    same = found(u, Draws(1, torch.arange(400)).uniform())
    assert same["auroc_loss_low"] < 0.5 < same["auroc_loss_high"]
    assert abs(same["auroc_control"] - 0.5) < 0.1
    assert same["members"] == 400
    assert same["non_members"] == 200


def test_thresholds_by_hand() -> None:
    outside = np.arange(100.0)
    assert membership.tpr(np.array([98.5, 99.5, 10.0, 97.0]), outside, 0.01) == 0.5  # one false positive: above 98
    assert membership.tpr(np.array([98.5, 99.5]), outside, 0.001) == 0.5  # none: above 99


def test_the_calibrated_score_takes_off_the_loss_of_the_class() -> None:
    losses, classes = np.array([1.0, 3.0, 10.0]), np.array([0, 0, 2])
    base = membership._by_class(losses, classes, 4)
    assert base.tolist() == [2.0, losses.mean(), 10.0, losses.mean()]
