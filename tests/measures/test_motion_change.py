"""Jerk and bones of motions with a known change."""

from __future__ import annotations

import torch
from siegebench.measures import motion_change  # type: ignore[attr-defined]

from siegebench import registry
from siegebench.data import SEQUENCE
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.threat import ThreatModel
from siegebench.types import Measure
from tests import kit


def rods(frames: int = 8) -> torch.Tensor:
    """A rod of length 0.2 that falls freely, and a joint that goes its own way: [1, 3, frames, 3]."""
    t = torch.arange(frames) / frames
    x = torch.full((1, 3, frames, 3), 0.5)
    x[0, 1, :, :2] = 0.9 - 0.3 * t.square()[:, None]
    x[0, 0, :, 1] += 0.2
    x[0, 2, :, 2] += 0.4 * t
    return x


def test_jerk_is_the_second_difference() -> None:
    x = rods()
    expected = 2 * (0.6 / 64) / 9  # one coordinate of two of the three joints
    torch.testing.assert_close(motion_change.jerk(x), torch.tensor([expected]))
    torch.testing.assert_close(motion_change.jerk(x + 0.05), motion_change.jerk(x))


def test_only_pairs_that_keep_their_distance_are_bones() -> None:
    x = rods()
    longer = x.clone()
    longer[0, 0, :, 1] += 0.02  # the rod, by a tenth
    torch.testing.assert_close(motion_change.stretch(longer, x), torch.tensor([0.1]), atol=1e-4, rtol=0)
    moved = x.clone()
    moved[0, :, :, 2] += 0.05  # no bone
    torch.testing.assert_close(motion_change.stretch(moved, x), torch.tensor([0.0]))


def test_it_looks_at_the_attack_that_it_is_given() -> None:
    model, x = kit.linear_model(), kit.grey_images(4)
    model.kind = SEQUENCE
    draws, threat = Draws(0, torch.arange(4)), ThreatModel(norm="linf", eps=0.01)
    measure = registry.build(Measure, {"name": "motion_change", "attack": "uniform_noise"})
    found = measure(Oracle(model, threat, draws), x, model(x).argmax(dim=1), threat, draws)["metrics"]
    assert 0.0099 < found["size"] <= 0.0100001
    assert found["jerk_ratio"] > 1
