"""JPEG is the codec of Pillow, bit for bit, and passes gradients back through every stage."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, features

from siegebench.draws import Draws

from .grey_digits import defense


def pillow(image: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


@pytest.mark.skipif(not features.check_feature("libjpeg_turbo"), reason="Pillow is built with another JPEG library")
@pytest.mark.parametrize("quality", [1, 25, 75, 95, 100])
@pytest.mark.parametrize("size", [(8, 8), (16, 32), (17, 23), (33, 64), (5, 3)])
def test_jpeg_is_the_codec_of_pillow_bit_for_bit(size: tuple[int, int], quality: int) -> None:
    g = torch.Generator().manual_seed(0)
    smooth = F.interpolate(torch.rand(3, 3, 4, 4, generator=g), size, mode="bicubic")
    noisy = (smooth + 0.05 * torch.randn(smooth.shape, generator=g)).clamp(0, 1)
    x = (torch.cat([noisy, torch.rand(1, 3, *size, generator=g).round()]) * 255).round() / 255
    out = defense("jpeg", quality=quality).transform(x, Draws.fresh(len(x)))  # type: ignore[attr-defined]
    for image, found in zip(x, out, strict=True):
        grey = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        assert np.array_equal((found * 255).round().to(torch.uint8).permute(1, 2, 0).numpy(), pillow(grey, quality))


def test_jpeg_passes_gradients_back_through_every_stage() -> None:
    module = sys.modules[type(defense("jpeg")).__module__]
    f = torch.linspace(-300, 300, 601, dtype=torch.float64).requires_grad_(True)
    q = torch.tensor(10.0, dtype=torch.float64)
    out = module._Quantised.apply(f, q)
    assert torch.equal(out, (f.detach() / 80).abs().add(0.5).floor() * 10 * f.detach().sign())
    (slope,) = torch.autograd.grad(out.sum(), f)
    u = f.detach() / 80
    stairs = lambda u: u - 0.9 * (2 * torch.pi * u).sin() / (2 * torch.pi)  # noqa: E731
    assert torch.allclose(slope, 10 * (stairs(u + 1e-6) - stairs(u - 1e-6)) / 2e-6 / 80, atol=1e-6)
    # brightness and colour of a plain image go through transform, subsampling and back
    plain = torch.full((1, 3, 16, 16), 0.4, dtype=torch.float64).requires_grad_(True)
    (g,) = torch.autograd.grad(defense("jpeg", quality=100).transform(plain, Draws.fresh(1))[:, 0].mean(), plain)  # type: ignore[attr-defined]
    assert bool((g[:, 0] > 0).all())
    assert float(g[:, 0].sum()) > 5 * float(g[:, 1:].abs().sum())
