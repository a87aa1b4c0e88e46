"""Brightness, contrast, elastic transform, pixelate, JPEG and the changes of light against other implementations."""

from __future__ import annotations

import colorsys
import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from siegebench.corruptions._warp import affine_through, sampled
from siegebench.corruptions.brightness import Brightness
from siegebench.corruptions.contrast import Contrast
from siegebench.corruptions.contrast_scale import ContrastScale
from siegebench.corruptions.elastic_transform import ElasticTransform
from siegebench.corruptions.jpeg_compression import JPEGCompression
from siegebench.corruptions.light_shift import LightShift
from siegebench.corruptions.pixelate import Pixelate

from .pictures import draws, planted


@pytest.mark.parametrize(("side", "amounts"), [(12, (0.05, 0.1, 0.15, 0.2, 0.3)), (66, (0.1, 0.2, 0.3, 0.4, 0.5))])
def test_brightness_raises_the_value(side: int, amounts: tuple[float, ...]) -> None:
    x = planted(1, side, side, torch.float64)
    x[..., 0, 0], x[..., 0, 1] = 0, 1
    x[:, 1:, 1, 1] = 0  # pure red
    for severity, c in enumerate(amounts, 1):
        theirs = np.empty(x.shape[1:])
        for h, w in np.ndindex(side, side):
            hue, saturation, value = colorsys.rgb_to_hsv(*x[0, :, h, w].tolist())
            theirs[:, h, w] = colorsys.hsv_to_rgb(hue, saturation, min(value + c, 1))
        np.testing.assert_allclose(Brightness()(x, severity, draws(1))[0].numpy(), theirs, atol=1e-9)


@pytest.mark.parametrize(("side", "factors"), [(32, (0.75, 0.5, 0.4, 0.3, 0.15)), (66, (0.4, 0.3, 0.2, 0.1, 0.05))])
def test_contrast_is_around_the_mean_of_each_channel(side: int, factors: tuple[float, ...]) -> None:
    x = planted(2, side, side, torch.float64)
    for severity, c in enumerate(factors, 1):
        for i, image in enumerate(x.numpy().transpose(0, 2, 3, 1)):
            means = image.mean(axis=(0, 1), keepdims=True)
            theirs = np.clip((image - means) * c + means, 0, 1).transpose(2, 0, 1)
            np.testing.assert_allclose(Contrast()(x, severity, draws(2))[i].numpy(), theirs, atol=1e-12)


def eight_bit(x: torch.Tensor) -> Image.Image:
    return Image.fromarray((x * 255).round().byte().permute(1, 2, 0).numpy())


@pytest.mark.parametrize(("size", "shares"), [
    ((32, 32), (0.95, 0.9, 0.85, 0.75, 0.65)), ((48, 37), (0.95, 0.9, 0.85, 0.75, 0.65)),
    ((160, 224), (0.6, 0.5, 0.4, 0.3, 0.25)),
])  # fmt: skip
def test_pixelate_is_pillows_box(size: tuple[int, int], shares: tuple[float, ...]) -> None:
    x = planted(1, *size)
    for severity, c in enumerate(shares, 1):
        small = eight_bit(x[0]).resize((int(size[1] * c), int(size[0] * c)), Image.Resampling.BOX)
        theirs = np.asarray(small.resize((size[1], size[0]), Image.Resampling.BOX)).transpose(2, 0, 1)
        ours = 255 * Pixelate()(x, severity, draws(1))[0].numpy()
        assert np.abs(ours - theirs).max() < 1.01  # Pillow rounds to 8 bits along each axis


@pytest.mark.parametrize(("size", "qualities"), [((32, 40), (80, 65, 58, 50, 40)), ((70, 70), (25, 18, 15, 10, 7))])
def test_jpeg_is_pillows(size: tuple[int, int], qualities: tuple[int, ...]) -> None:
    x = planted(1, *size)
    for severity, quality in enumerate(qualities, 1):
        file = io.BytesIO()
        eight_bit(x[0]).save(file, "JPEG", quality=quality)
        theirs = np.asarray(Image.open(file)).transpose(2, 0, 1)
        assert (255 * JPEGCompression()(x, severity, draws(1))[0]).round().byte().numpy().tolist() == theirs.tolist()


@pytest.mark.parametrize("border", ["nearest", "reflect", "mirror"])
def test_sampling_is_scipys(border: str) -> None:
    x = planted(2, 17, 23, torch.float64)
    g = torch.Generator().manual_seed(0)
    rows, columns = (40 * torch.rand(2, 17, 23, generator=g, dtype=torch.float64) - 10 for _ in range(2))
    ours = sampled(x, rows, columns, border)  # type: ignore[arg-type]
    for i, c in np.ndindex(2, 3):
        at = np.stack([rows[i].numpy(), columns[i].numpy()])
        theirs = ndimage.map_coordinates(x[i, c].numpy(), at, order=1, mode=border)
        np.testing.assert_allclose(ours[i, c].numpy(), theirs, atol=1e-9)


def test_affine_map_takes_the_corners_where_they_should_go() -> None:
    moved = 4 * (2 * torch.rand(5, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 1).round()
    rows, columns = affine_through(moved, 32, 48)
    for i in range(5):
        for k, (x, y) in enumerate(((34, 26), (34, 6), (14, 6))):  # (24 +- 10, 16 +- 10)
            right, down = int(x + moved[i, k, 0]), int(y + moved[i, k, 1])
            assert float(columns[i, down, right]) == pytest.approx(x)
            assert float(rows[i, down, right]) == pytest.approx(y)
    rows, columns = affine_through(torch.zeros(1, 3, 2, dtype=torch.float64), 9, 12)
    torch.testing.assert_close(columns[0], torch.arange(12.0).double().expand(9, 12))
    torch.testing.assert_close(rows[0], torch.arange(9.0).double()[:, None].expand(9, 12))


@pytest.mark.parametrize(("size", "severity", "alpha", "sigma", "j"), [
    ((32, 32), 1, 0, 0, 2.56), ((32, 32), 5, 3.2, 0.96, 0.96), ((224, 224), 1, 488, 170.8, 24.4),
    ((224, 224), 5, 29.28, 2.44, 4.88), ((112, 130), 4, 8.54, 1.22, 2.44),
])  # fmt: skip
def test_elastic_transform_moves_corners_then_pixels(
    size: tuple[int, int], severity: int, alpha: float, sigma: float, j: float
) -> None:
    x = planted(1, *size, torch.float64)
    corners = j * (2 * draws(1).uniform((3, 2), purpose="corners").double() - 1)
    rows, columns = affine_through(corners, *size)
    theirs = np.stack([
        ndimage.map_coordinates(c, np.stack([rows[0], columns[0]]), order=1, mode="mirror") for c in x[0].numpy()
    ])  # fmt: skip
    if alpha:
        u = (2 * draws(1).uniform((2, *size), purpose="field").double() - 1)[0].numpy()
        field = alpha * np.stack([ndimage.gaussian_filter(f, sigma, mode="reflect", truncate=3) for f in u])
        h, w = np.meshgrid(np.arange(size[0]), np.arange(size[1]), indexing="ij")
        at = np.stack([h + field[0], w + field[1]])
        theirs = np.stack([ndimage.map_coordinates(c, at, order=1, mode="reflect") for c in theirs])
    np.testing.assert_allclose(ElasticTransform()(x, severity, draws(1))[0].numpy(), theirs, atol=1e-6)


def test_light_shift_adds_or_takes_a_tenth_a_severity() -> None:
    x = torch.full((200, 3, 4, 4), 0.5, dtype=torch.float64)
    for severity in range(1, 6):
        b = (LightShift()(x, severity, draws(200)) - 0.5)[:, 0, 0, 0]
        torch.testing.assert_close(b.abs(), torch.full((200,), severity / 10, dtype=torch.float64))
        assert 70 < int((b > 0).sum()) < 130
    assert float(LightShift(direction="brighter")(x, 3, draws(200)).min()) == pytest.approx(0.8)
    assert float(LightShift(direction="darker")(x, 3, draws(200)).max()) == pytest.approx(0.2)


def test_contrast_scale_goes_from_a_fifth_to_nine_fifths() -> None:
    x = torch.full((200, 3, 4, 4), 0.6, dtype=torch.float64)
    c = (ContrastScale()(x, 5, draws(200)) - 0.5)[:, 0, 0, 0] / 0.1
    assert sorted({round(v, 6) for v in c.tolist()}) == [0.2, 1.8]
    assert float(ContrastScale(direction="lower")(x, 1, draws(200))[0, 0, 0, 0]) == pytest.approx(0.584)
    assert float(ContrastScale(direction="higher")(x, 1, draws(200))[0, 0, 0, 0]) == pytest.approx(0.616)
