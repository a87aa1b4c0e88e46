"""Snow, fog and frost: each part against the published formula."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from siegebench.corruptions._motion import motion_blur
from siegebench.corruptions._plasma import plasma
from siegebench.corruptions._zoom import cropped, enlarged
from siegebench.corruptions.fog import Fog
from siegebench.corruptions.frost import Frost
from siegebench.corruptions.frost_synthetic import FrostSynthetic
from siegebench.corruptions.snow import Snow

from .pictures import draws, planted


def diamond_square(side: int, decay: float, seed: int) -> np.ndarray:
    """The published recursion, point by point, with numpy's own random numbers."""
    g = np.random.default_rng(seed)
    m = np.zeros((side, side))
    step, a = side, 100.0
    while step >= 2:
        half = step // 2
        for i in range(0, side, step):
            for j in range(0, side, step):
                corners = [m[(i + u) % side, (j + v) % side] for u in (0, step) for v in (0, step)]
                m[i + half, j + half] = sum(corners) / 4 + a * g.uniform(-a, a)
        for i in range(0, side, step):
            for j in range(0, side, step):
                for y, x in ((i, j + half), (i + half, j)):
                    near = [
                        m[(y + u) % side, (x + v) % side] for u, v in ((half, 0), (-half, 0), (0, half), (0, -half))
                    ]
                    m[y, x] = sum(near) / 4 + a * g.uniform(-a, a)
        step, a = half, a / decay
    return (m - m.min()) / (m.max() - m.min())


@pytest.mark.parametrize("decay", [3.0, 1.75])
def test_plasma_has_the_variogram_of_diamond_square(decay: float) -> None:
    n, side = 150, 16
    ours = plasma((side, side), decay, draws(n), "test").double().numpy()
    theirs = np.stack([diamond_square(side, decay, seed) for seed in range(n)])
    assert ours.min() == 0
    assert ours.max() == 1
    assert ours.mean() == pytest.approx(theirs.mean(), abs=0.03)
    for lag in (1, 2, 4, 8):
        for axis in (1, 2):
            mean = [float(np.mean((m - np.roll(m, lag, axis)) ** 2)) for m in (ours, theirs)]
            assert mean[0] == pytest.approx(mean[1], rel=0.15), (lag, axis)


def test_plasma_of_one_octave_is_its_draws() -> None:
    m = plasma((2, 2), 2.0, draws(5), "test")
    assert bool((m.flatten(1).amin(1) == 0).all())
    assert bool((m.flatten(1).amax(1) == 1).all())
    assert plasma((20, 70), 2.0, draws(5), "test").shape == (5, 20, 70)


def test_faster_decay_is_smoother() -> None:
    rough = [float(plasma((64, 64), decay, draws(20), "test").diff(dim=1).abs().mean()) for decay in (1.4, 2.0, 3.0)]
    assert rough == sorted(rough, reverse=True)


@pytest.mark.parametrize(("side", "severity", "c", "decay"), [(48, 1, 0.2, 3.0), (48, 5, 1.5, 1.75), (96, 5, 3.0, 1.4)])
def test_fog_is_added_and_scaled_back(side: int, severity: int, c: float, decay: float) -> None:
    x = planted(3, side, side, torch.float64) * 0.8
    f = plasma((side, side), decay, draws(3), "fog").numpy()
    for i, image in enumerate(x.numpy()):
        theirs = np.clip((image + c * f[i]) * image.max() / (image.max() + c), 0, 1)
        np.testing.assert_allclose(Fog()(x, severity, draws(3))[i].numpy(), theirs, atol=1e-12)


def test_snow_whitens_and_adds_flakes_twice() -> None:
    x = planted(2, 32, 32, torch.float64)
    mean, sigma, z, threshold, radius, blur, b = 0.25, 0.3, 2.25, 0.6, 12, 6, 0.85
    side = cropped(32, z)
    assert side == 15
    noise = mean + sigma * draws(2).normal((1, side, side), purpose="flakes").double()
    layer = enlarged(noise, (32, 32), z).numpy()
    layer = np.clip(np.where(layer < threshold, 0, layer), 0, 1)
    angle = 90 * draws(2).uniform(purpose="angle") - 135
    assert bool(((angle >= -135) & (angle < -45)).all())
    s = motion_blur(torch.from_numpy(layer), angle, radius, blur).numpy()
    grey = np.tensordot(x.numpy(), (0.299, 0.587, 0.114), axes=(1, 0))[:, None]
    white = b * x.numpy() + (1 - b) * np.maximum(x.numpy(), grey * 1.5 + 0.5)
    theirs = np.clip(white + s + np.rot90(s, k=2, axes=(2, 3)), 0, 1)
    np.testing.assert_allclose(Snow()(x, 4, draws(2)).numpy(), theirs, atol=1e-7)


def frozen(folder: Path) -> str:
    """Photographs whose pixels say where they are: red the row, green the column, blue the number."""
    for k, name in enumerate(("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")):
        pixels = np.zeros((250, 240, 3), dtype=np.uint8)
        pixels[..., 0] = np.arange(250)[:, None]
        pixels[..., 1] = np.arange(240)
        pixels[..., 2] = 50 * k
        Image.fromarray(pixels).save(folder / name, **({"format": "PNG"} if name.endswith("jpg") else {}))
    return str(folder)


def test_frost_mixes_crops_of_the_five_photographs(tmp_path: Path) -> None:
    n = 40
    x = torch.full((n, 3, 224, 224), 0.5)
    frost = Frost(folder=frozen(tmp_path))
    laid = (frost(x, 1, draws(n)) - 0.5) / 0.4 * 255  # 1.0 x + 0.4 f, nothing clipped
    laid = laid.where(laid < 124, torch.nan)  # 0.5 + 0.4 f above 1 is cut
    seen = set((laid[:, 2, 0, 0].nan_to_num(150) / 50).round().long().tolist())
    assert seen == {0, 1, 2, 3}  # 3 and 4 are cut to the same
    top, left = laid[:, 0, 0, 0], laid[:, 1, 0, 0]
    assert float(top.min()) < 3
    assert 22 < float(top.max()) < 26.1
    assert 13 < float(left.max()) < 16.1
    torch.testing.assert_close(laid[:, 0, 30, 5] - top, torch.full((n,), 30.0), rtol=0, atol=0.01)
    torch.testing.assert_close(laid[:, 1, 30, 5] - left, torch.full((n,), 5.0), rtol=0, atol=0.01)


def test_frost_shrinks_its_photographs_for_small_images(tmp_path: Path) -> None:
    frost = Frost(folder=frozen(tmp_path))
    x = torch.zeros(4, 3, 32, 32)
    row = frost(x, 5, draws(4))[:, 0, :, 0] / 0.45 * 255
    torch.testing.assert_close(row.diff(dim=1), torch.full((4, 31), 5.0), rtol=0, atol=0.02)
    assert frost(torch.zeros(1, 3, 64, 200), 1, draws(1)).shape == (1, 3, 64, 200)  # larger than a fifth: less shrunk


def test_frost_is_known_by_its_photographs(tmp_path: Path) -> None:
    folder = frozen(tmp_path)
    before = Frost(folder=folder).identity()
    assert Frost(folder=folder).parameters() == {}
    (tmp_path / "frost5.jpg").write_bytes((tmp_path / "frost1.png").read_bytes())
    assert Frost(folder=folder).identity() != before


def test_synthetic_frost_looks_as_bright_as_the_photographs() -> None:
    """Means of the official five lie from 0.48 to 0.81, their spreads from 0.07 to 0.17."""
    f = FrostSynthetic()(torch.zeros(40, 3, 64, 64), 5, draws(40)) / 0.45  # the weight of frost at 64 pixels
    grey = f.mean(dim=1).flatten(1)
    assert 0.55 < float(grey.mean()) < 0.72
    assert 0.07 < float(grey.std(dim=1).mean()) < 0.17
    assert float(f[:, 2].mean()) > float(f[:, 0].mean())  # bluish
