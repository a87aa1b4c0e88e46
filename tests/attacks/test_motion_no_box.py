"""The dynamics of planted motions, and the no-box attack on windows of sines."""

from __future__ import annotations

import torch
from siegebench.attacks import _motion  # type: ignore[attr-defined]
from torch import Tensor

from siegebench import registry
from siegebench.classifier import Classifier
from siegebench.data import SEQUENCE, ImageSet
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.threat import ThreatModel
from siegebench.types import Attack
from tests import kit

NONE = ThreatModel(norm="linf", eps=0.02, access="none")


def planted(phi1: float, phi2: float, frames: int = 24) -> Tensor:
    """Motions x_t = phi1 x_{t-1} + phi2 x_{t-2}, [2, 3, frames, 4]."""
    start = 0.5 + Draws(1, torch.arange(2)).uniform((2, 3, 4)).double()
    rows = [start[:, 0], start[:, 1]]
    for _ in range(frames - 2):
        rows.append(phi1 * rows[-1] + phi2 * rows[-2])
    return torch.stack(rows, dim=2)


def test_planted_coefficients_are_found() -> None:
    phi = _motion.autoregression(planted(1.5, -0.8), 2)[:, :, :, 2:]
    assert (phi[0] - 1.5).abs().max() < 0.02
    assert (phi[1] + 0.8).abs().max() < 0.02
    still = _motion.autoregression(torch.full((1, 3, 12, 2), 0.7, dtype=torch.float64), 2)[:, :, :, 2:]
    torch.testing.assert_close(still.sum(dim=0), torch.ones_like(still[0]), atol=1e-3, rtol=0)


def test_a_gradient_is_carried_through_the_dynamics() -> None:
    x = planted(0.9, 0.0)  # of order one: dx_{t+1}/dx_t = 0.9, and a step more is 0.81
    g = torch.zeros_like(x)
    g[:, :, 10] = 1.0
    carried = _motion.carried(g, *_motion.dynamics(x))
    assert (carried[:, :, 10] - 1).abs().max() < 1e-9
    assert (carried[:, :, 9] - 0.9).abs().max() < 0.01
    assert (carried[:, :, 8] - 0.81).abs().max() < 0.02
    assert float(carried[:, :, :8].abs().max()) == float(carried[:, :, 11:].abs().max()) == 0


def sines() -> ImageSet:
    """40 windows of sines, float32 [40, 3, 16, 5]: four speeds."""
    speed, ids = torch.arange(40) % 4, torch.arange(40)
    phase = 6 * Draws(2, ids).uniform((3, 1, 5))
    t = torch.arange(16.0).view(1, 1, 16, 1)
    x = 0.5 + 0.3 * torch.sin(0.25 * (1 + speed.view(-1, 1, 1, 1)) * t + phase)
    return ImageSet(x, speed, ids, 4, "sines", kind=SEQUENCE)


def test_codes_move_further_than_by_noise() -> None:
    data, draws = sines(), Draws(0, torch.arange(40))
    oracle = Oracle(_none(), NONE, draws)
    attack = registry.build(Attack, {"name": "motion_no_box", "epochs": 4, "steps": 10, "centres": 8, "width": 16})
    noise = registry.build(Attack, "uniform_noise")
    lesson = attack.learn(oracle, data, NONE, draws)
    x, y = data.pixels(), data.labels
    with torch.no_grad():
        own, by_noise, by_attack = (
            lesson.net(v) for v in (x, noise(oracle, x, y, NONE, draws), attack(oracle, x, y, NONE, draws, lesson))
        )
    moved, shaken = (float(1 - (own * v).sum(dim=1).mean()) for v in (by_attack, by_noise))
    assert moved > 5 * shaken
    assert int(oracle.ledger.forwards.sum()) == 0


def _none() -> Classifier:
    model = kit.linear_model()
    model.kind = SEQUENCE
    return model
