"""One flickering signal for all images: every image its own phase, the best light of a planted model, its control."""

from __future__ import annotations

import torch
from siegebench.attacks.rolling_shutter import GAMMA, render
from siegebench.attacks.rolling_shutter_shared import RollingShutterShared

from siegebench import ops
from siegebench.draws import Draws
from tests import kit

from .patches import SIZE, changed, l0, scores, taught


def test_each_image_has_the_signal_at_its_own_phase() -> None:
    attack, signal = RollingShutterShared(light=0.6, exposure=3), torch.rand(3, 12)
    x = torch.full((6, 3, 10, 8), 0.5)
    out = attack.lit(1.0, signal, x, Draws(0, torch.arange(6)), 0)
    phases = []
    for picture in out:
        same = [
            p for p in range(12)
            if torch.allclose(render(x[:1], signal[None], torch.tensor([p]), 0.6, 3)[0], picture, atol=1e-6)
        ]  # fmt: skip
        assert len(same) == 1
        phases += same
    assert len(set(phases)) > 2
    assert not torch.equal(out, attack.lit(1.0, signal, x, Draws(0, torch.arange(6)), 1))  # of another step


def test_a_smaller_budget_lights_a_band_of_whole_rows() -> None:
    x = torch.full((40, 3, 10, 8), 0.5)
    lit = changed(RollingShutterShared().lit(0.35, torch.zeros(3, 13), x, Draws(0, torch.arange(40)), 0), x)
    assert lit.all(dim=2).sum(dim=1).tolist() == [3] * 40  # 28 of 80 pixels
    assert lit.any(dim=2).sum(dim=1).tolist() == [3] * 40
    assert len({int(i) for i in lit[:, :, 0].int().argmax(dim=1)}) > 3


def test_the_best_light_is_found_and_beats_the_random_signal() -> None:
    """Red speaks for the wrong class, green and blue against it: red stays, the others go dark, at every phase."""
    w = 0.01 * torch.tensor([1.0, -1.0, -1.0])[:, None, None].expand(3, SIZE, SIZE)
    model, x, y = scores(w, 5.0), kit.grey_images(8, SIZE), torch.zeros(8, dtype=torch.long)
    expected = x * torch.tensor([1.0, 0.3 ** (1 / GAMMA), 0.3 ** (1 / GAMMA)])[:, None, None]
    attack = RollingShutterShared(steps=60, lr=0.1)
    signal, oracle = taught(attack, model, 1.0)
    assert int(oracle.ledger.backwards.sum()) == 60 * 16
    x_adv, spent = kit.attack_with(attack, model, x, y, l0(1.0), lesson=signal)
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-3)
    assert int(spent.ledger.forwards.sum()) == 0
    control = RollingShutterShared(optimise=False)
    signal, oracle = taught(control, model, 1.0)
    assert int(oracle.ledger.forwards.sum()) == 0
    by_chance, _ = kit.attack_with(control, model, x, y, l0(1.0), lesson=signal)
    assert float(ops.margin(model(by_chance), y).mean()) < float(ops.margin(model(x_adv), y).mean())
