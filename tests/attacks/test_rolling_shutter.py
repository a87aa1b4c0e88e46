"""Rolling shutter: exposure, picture and light against loops and closed forms."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from siegebench.attacks.rolling_shutter import DARK, GAMMA, RollingShutter, exposed, render

from siegebench import ops
from siegebench.errors import NotApplicable
from siegebench.testing.specimens import victim
from tests import kit

from .patches import SIZE, changed, held, l0, resnet20, scores, signs


def test_the_exposure_is_that_of_a_loop_and_a_phase_is_a_roll() -> None:
    signal, phase = torch.rand(3, 2, 13), torch.tensor([0, 5, 12])
    got = exposed(signal, phase, 10, 4)
    for i, c, row in itertools.product(range(3), range(2), range(10)):
        expected = sum(float(signal[i, c, (row + j - int(phase[i])) % 13]) for j in range(4)) / 4
        assert float(got[i, c, row]) == pytest.approx(expected, abs=1e-6)
    for i in range(3):
        rolled = exposed(signal[i : i + 1].roll(int(phase[i]), 2), torch.tensor([0]), 10, 4)
        torch.testing.assert_close(rolled[0], got[i])


def test_the_picture_is_that_of_a_loop() -> None:
    x, signal, phase = torch.rand(2, 3, 5, 4), torch.rand(2, 3, 7), torch.tensor([1, 4])
    x[0, :, 0], x[1, :, 1] = 0.0, 1.0
    out = render(x, signal, phase, 0.7, 3)
    for i, c, row, column in itertools.product(range(2), range(3), range(5), range(4)):
        g = sum(float(signal[i, c, (row + j - int(phase[i])) % 7]) for j in range(3)) / 3
        full = float(x[i, c, row, column]) ** GAMMA
        ambient = ((1 - 0.7) ** (1 / GAMMA) * float(x[i, c, row, column])) ** GAMMA
        expected = ((ambient + g * (full - ambient)) * (1 - DARK) + DARK) ** (1 / GAMMA)
        assert float(out[i, c, row, column]) == pytest.approx(expected, abs=2e-6)
    full_light = render(x, torch.ones(2, 3, 7), phase, 0.7, 3)
    assert float((full_light - x).abs().max()) < 0.002  # what keeps the root from zero, at black
    assert torch.equal(full_light[1, :, 1], x[1, :, 1])
    none = render(x, torch.zeros(2, 3, 7), phase, 1.0, 3)
    assert float(none.max()) < 0.002


def test_the_derivative_of_the_picture() -> None:
    x = kit.grey_images(2, 5).double()
    for light in (0.3, 1.0):
        signal = (0.1 + 0.8 * torch.rand(2, 3, 8, generator=torch.Generator().manual_seed(1))).double()
        phase = torch.tensor([2, 6])
        assert torch.autograd.gradcheck(
            lambda f, light=light, phase=phase: render(x, f, phase, light, 4), signal.requires_grad_(True)
        )
    black = torch.zeros(1, 3, 5, 5)
    signal = torch.zeros(1, 3, 8, requires_grad=True)
    (g,) = torch.autograd.grad(render(black, signal, torch.tensor([0]), 1.0, 4).sum(), signal)
    assert bool(torch.isfinite(g).all())


def test_the_best_light_of_a_model_of_colours_is_found() -> None:
    """Red speaks for the wrong class, green and blue against it: red stays, the others go dark, at every phase."""
    w = 0.01 * torch.tensor([1.0, -1.0, -1.0])[:, None, None].expand(3, SIZE, SIZE)
    x, y = kit.grey_images(8, SIZE), torch.zeros(8, dtype=torch.long)
    expected = x * torch.tensor([1.0, 0.3 ** (1 / GAMMA), 0.3 ** (1 / GAMMA)])[:, None, None]
    x_adv, oracle = kit.attack_with(RollingShutter(steps=30, step=0.1, phases=3), scores(w, 5.0), x, y, l0(1.0))
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-4)
    assert oracle.ledger.forwards.tolist() == [90] * 8
    assert oracle.ledger.backwards.tolist() == [90] * 8
    towards, _ = kit.attack_with(RollingShutter(steps=30, step=0.1, target=0), scores(w, 5.0), x, y, l0(1.0))
    expected = x * torch.tensor([0.3 ** (1 / GAMMA), 1.0, 1.0])[:, None, None]
    torch.testing.assert_close(towards, expected, rtol=0, atol=1e-4)
    mono, _ = kit.attack_with(RollingShutter(steps=30, step=0.1, colour=False), scores(w, 5.0), x, y, l0(1.0))
    torch.testing.assert_close(mono, x * 0.3 ** (1 / GAMMA), rtol=0, atol=1e-4)
    with pytest.raises(NotApplicable, match="no class"):
        kit.attack_with(RollingShutter(target=2), scores(w, 5.0), x, y, l0(1.0))


@pytest.mark.parametrize("light", [0.3, 1.0])
def test_rows_have_one_gain_within_what_the_light_allows(light: float) -> None:
    model, x = kit.cnn_model().double(), kit.grey_images(6, 16).double()
    y = model(x).argmax(1)
    x_adv, _ = kit.attack_with(RollingShutter(light=light, steps=8), model, x, y, l0(1.0))
    gain = (x_adv**GAMMA - DARK) / (1 - DARK) / x**GAMMA
    torch.testing.assert_close(gain, gain[..., :1].expand_as(gain), rtol=1e-6, atol=1e-9)
    assert float(gain.min()) >= 1 - light - 1e-6
    assert float(gain.max()) <= 1 + 1e-6
    assert float(gain[..., 0].std(dim=2).min()) > 0  # stripes


def test_with_less_than_all_pixels_a_band_is_lit() -> None:
    x = kit.grey_images(60, 16)
    y = torch.zeros(60, dtype=torch.long)
    w = signs(1, 16)
    x_adv, _ = kit.attack_with(RollingShutter(steps=2), scores(w, 5.0), x, y, l0(0.3))
    rows = changed(x_adv, x)
    assert bool((rows.all(dim=2) == rows.any(dim=2)).all())
    lit = rows.any(dim=2)
    assert lit.sum(1).tolist() == [4] * 60  # of 16
    first = lit.int().argmax(1)
    assert set(first.tolist()) == set(range(13))
    assert bool((lit == (torch.arange(16) - first[:, None]).clamp(-1, 4).remainder(5).lt(4)).all())
    nothing, _ = kit.attack_with(RollingShutter(steps=2), scores(w, 5.0), x, y, l0(0.05))
    assert torch.equal(nothing, x)


def test_an_optimised_signal_beats_a_random_one_at_phases_it_has_not_seen() -> None:
    model, x = victim()[0], kit.grey_images(32, 16).double()
    y = model(x).argmax(1)
    loss = {}
    for steps in (1, 30):
        attack = RollingShutter(steps=steps, step=0.05 if steps > 1 else 1e-9, light=1.0, phases=2)
        x_adv, _ = kit.attack_with(attack, model, x, y, l0(1.0))
        loss[steps] = ops.cross_entropy(model(x_adv), y)
    assert bool((loss[30] > loss[1]).double().mean() > 0.9)


@pytest.mark.slow
def test_rolling_shutter_on_resnet20() -> None:
    model, x, y, _ = resnet20()
    x, y = x[:32], y[:32]
    left: dict[str, list[int]] = {"colour": [], "mono": [], "random": []}
    for light in (0.3, 0.5, 0.7, 1.0):
        for name in left:
            attack = RollingShutter(light=light, colour=name != "mono", steps=12, step=0.15, phases=4)
            if name == "random":  # as random as the signal begins
                attack = replace(attack, steps=1, step=1e-9)
            x_adv, _ = kit.attack_with(attack, model, x, y, l0(1.0))
            left[name].append(held(model, x_adv, y))
            print(f"light {light} {name}: {left[name][-1]} of 32 hold", flush=True)
    for name in ("colour", "mono"):
        assert left[name] == sorted(left[name], reverse=True)
    assert all(mine < control for mine, control in zip(left["colour"], left["random"], strict=True))
