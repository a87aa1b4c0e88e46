"""The blurs against implementations with numpy and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from siegebench.corruptions._filters import beyond, disk, gaussian_blur
from siegebench.corruptions._motion import motion_blur
from siegebench.corruptions._scatter import scattered
from siegebench.corruptions._zoom import zoomed
from siegebench.corruptions.defocus_blur import DefocusBlur
from siegebench.corruptions.glass_blur import GlassBlur
from siegebench.corruptions.motion_blur import MotionBlur
from siegebench.corruptions.zoom_blur import ZoomBlur

from siegebench.draws import Draws

from .pictures import draws, planted


@pytest.mark.parametrize(("border", "scipys"), [("nearest", "edge"), ("reflect", "symmetric"), ("mirror", "reflect")])
def test_borders_are_numpys(border: str, scipys: str) -> None:
    for n in (2, 3, 7):
        index = beyond(torch.arange(-11, n + 11), n, border)  # type: ignore[arg-type]
        assert index.tolist() == np.pad(np.arange(n), 11, mode=scipys).tolist()  # type: ignore[call-overload]


@pytest.mark.parametrize("sigma", [0.05, 0.4, 1.5, 6.0])
@pytest.mark.parametrize(("border", "truncate"), [("nearest", 4.0), ("reflect", 3.0)])
def test_gaussian_blur_is_scipys(sigma: float, border: str, truncate: float) -> None:
    x = planted(2, 20, 33, torch.float64)
    ours = gaussian_blur(x, sigma, truncate, border)  # type: ignore[arg-type]
    theirs = ndimage.gaussian_filter(x.numpy(), sigma, axes=(2, 3), truncate=truncate, mode=border)
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-12)


@pytest.mark.parametrize(("side", "severity", "r", "s"), [(32, 1, 0.3, 0.4), (32, 5, 1.5, 0.1), (112, 5, 5, 0.5)])
def test_defocus_is_a_smoothed_disk(side: int, severity: int, r: float, s: float) -> None:
    x = planted(1, side, side, torch.float64)
    d = np.arange(-7, 8)
    flat = (d[:, None] ** 2 + d**2 <= r**2).astype(float)
    g = np.exp(-0.5 * (np.arange(-1, 2) / s) ** 2)
    kernel = ndimage.convolve(flat / flat.sum(), np.outer(g, g) / g.sum() ** 2, mode="constant")
    theirs = np.stack([ndimage.correlate(c, kernel, mode="mirror") for c in x[0].numpy()])
    np.testing.assert_allclose(DefocusBlur()(x, severity, draws(1))[0].numpy(), theirs, atol=1e-12)


def test_disks_have_sum_one_and_scale() -> None:
    assert float(disk(3, 0.5).sum()) == pytest.approx(1)
    x = torch.zeros(1, 3, 112, 112)
    x[..., 56, 56] = 1  # half of 224: the radius 10 becomes 5
    seen = DefocusBlur()(x, 5, draws(1))[0, 0].nonzero()
    assert int((seen - 56).abs().max()) == 6  # and a pixel of smoothing


@pytest.mark.parametrize("angle", [-45.0, -17.3, 0.0, 31.0, 45.0, -90.0, -135.0])
def test_motion_blur_is_a_sum_of_shifted_images(angle: float) -> None:
    x = planted(1, 24, 37, torch.float64)
    radius, sigma = 6, 2.5
    weights = np.exp(-(np.arange(2 * radius + 1) ** 2) / (2 * sigma**2))
    theirs = np.zeros(x.shape[1:])
    for i, weight in enumerate(weights / weights.sum()):
        down = math.ceil(i * math.sin(math.radians(angle)) - 0.5)
        right = math.ceil(i * math.cos(math.radians(angle)) - 0.5)
        wide = np.pad(x[0].numpy(), ((0, 0), (20, 20), (20, 20)), mode="edge")
        theirs += weight * wide[:, 20 + down : 44 + down, 20 + right : 57 + right]
    ours = motion_blur(x, torch.tensor([angle]), radius, sigma)[0].numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_motion_blur_draws_an_angle_between_minus_45_and_45() -> None:
    x = torch.zeros(200, 3, 41, 41)
    x[..., 20, 20] = 1
    out = MotionBlur()(x, 5, draws(200))[:, 0]
    h, w = torch.arange(41.0) - 20, torch.arange(41.0) - 20
    angle = torch.atan2(-(out.sum(2) @ h), -(out.sum(1) @ w)) * 180 / math.pi  # of the centre of mass
    assert float(angle.abs().max()) < 49  # whole pixels bend the line a little
    assert float(angle.mean()) == pytest.approx(0, abs=6)
    assert float(angle.std()) == pytest.approx(90 / math.sqrt(12), rel=0.15)
    assert bool((out[:, :, 21:] == 0).all())  # one way only


@pytest.mark.parametrize("z", [1.01, 1.06, 1.15, 1.3])
def test_zoom_is_scipys(z: float) -> None:
    x = planted(1, 32, 45, torch.float64)
    ch, cw = math.ceil(32 / z), math.ceil(45 / z)
    top, left = (32 - ch) // 2, (45 - cw) // 2
    big = ndimage.zoom(x[0].numpy()[:, top : top + ch, left : left + cw], (1, z, z), order=1)
    down, right = (big.shape[1] - 32) // 2, (big.shape[2] - 45) // 2
    theirs = big[:, down : down + 32, right : right + 45]
    np.testing.assert_allclose(zoomed(x, z)[0].numpy(), theirs, atol=1e-12)


@pytest.mark.parametrize(("side", "ends", "step"), [
    (32, (1.06, 1.11, 1.16, 1.21, 1.26), (0.01, 0.01, 0.01, 0.01, 0.01)),
    (80, (1.11, 1.16, 1.21, 1.26, 1.31), (0.01, 0.01, 0.02, 0.02, 0.03)),
])  # fmt: skip
def test_zoom_blur_is_the_mean_over_numpys_range(side: int, ends: tuple[float, ...], step: tuple[float, ...]) -> None:
    x = planted(1, side, side, torch.float64)
    for severity in range(1, 6):
        zooms = np.arange(1, ends[severity - 1], step[severity - 1])
        mean = (x + sum(zoomed(x, float(z)) for z in zooms)) / (len(zooms) + 1)
        torch.testing.assert_close(ZoomBlur()(x, severity, draws(1)), mean, rtol=0, atol=1e-9)


def one_by_one(size: tuple[int, int], d: int, rounds: int, swap: bool, of: Draws) -> np.ndarray:
    """The published loop over pixels, with the same draws."""
    height, width = size
    source = np.arange(height * width).reshape(size)
    rows, columns = height - 2 * d, width - 2 * d
    for k in range(rounds):
        dy = (of.integers(2 * d, (rows * columns,), step=k, purpose="down") - d)[0].reshape(rows, columns).numpy()
        dx = (of.integers(2 * d, (rows * columns,), step=k, purpose="right") - d)[0].reshape(rows, columns).numpy()
        for i, h in enumerate(range(height - d, d, -1)):
            for j, w in enumerate(range(width - d, d, -1)):
                there = h + dy[i, j], w + dx[i, j]
                kept = source[h, w]
                source[h, w] = source[there]
                if swap:
                    source[there] = kept
    return source.flatten()


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize(
    ("size", "d", "rounds"), [((16, 16), 1, 2), ((23, 15), 2, 1), ((20, 31), 4, 2), ((8, 9), 4, 1)]
)
def test_scattering_all_at_once_is_the_loop_over_pixels(size: tuple[int, int], d: int, rounds: int, swap: bool) -> None:
    together = scattered(size, d, rounds, swap, draws(3))
    for i in range(3):
        assert together[i].tolist() == one_by_one(size, d, rounds, swap, draws(3)[torch.tensor([i])]).tolist()
        if swap:  # nothing is lost
            assert sorted(together[i].tolist()) == list(range(size[0] * size[1]))


@pytest.mark.parametrize("d", [1, 3])
def test_most_pixels_come_from_within_reach(d: int) -> None:
    size = 40
    source = scattered((size, size), d, 1, False, draws(20))
    place = torch.arange(size * size)
    down, right = source // size - place // size, source % size - place % size
    far = torch.maximum(down.abs(), right.abs())
    assert float((far <= d).float().mean()) > 0.5
    assert float((far <= 4 * d).float().mean()) > 0.97  # a value that was copied may be copied on
    border = torch.ones(size, size, dtype=torch.bool)
    border[d + 1 : size - d + 1, d + 1 : size - d + 1] = False
    assert bool((source[:, border.flatten()] == place[border.flatten()]).all())  # never visited


def test_glass_blur_is_blur_scatter_blur() -> None:
    x = planted(2, 48, 48, torch.float64)
    source = scattered((48, 48), 1, 2, False, draws(2))
    theirs = ndimage.gaussian_filter(x.numpy(), 0.4, axes=(2, 3), truncate=4.0, mode="nearest").reshape(2, 3, -1)
    theirs = np.take_along_axis(theirs, source[:, None].numpy(), axis=2).reshape(x.shape)
    theirs = ndimage.gaussian_filter(theirs, 0.4, axes=(2, 3), truncate=4.0, mode="nearest")
    np.testing.assert_allclose(GlassBlur()(x, 5, draws(2)).numpy(), theirs, atol=1e-9)
    flat = torch.full((1, 3, 48, 48), 0.3)
    torch.testing.assert_close(GlassBlur(swap=True)(flat, 5, draws(1)), flat)
