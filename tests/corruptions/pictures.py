"""Images to corrupt: planted ones that look a little like photographs, of any size."""

from __future__ import annotations

import torch
from torch import Tensor

from siegebench.draws import Draws


def planted(n: int, height: int, width: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Clouds with the 1/f spectrum of photographs, and a disk of one colour; 8-bit values in [0, 1]."""
    g = torch.Generator().manual_seed(seed)
    f = (torch.fft.fftfreq(height)[:, None] ** 2 + torch.fft.rfftfreq(width) ** 2).sqrt().clamp(min=1 / 64)
    x = torch.fft.irfft2(torch.fft.rfft2(torch.randn(n, 3, height, width, generator=g)) / f, s=(height, width))
    x = 0.5 + 0.2 * x / x.square().flatten(1).mean(dim=1).sqrt().view(-1, 1, 1, 1)
    h, w = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)
    centre = torch.rand(n, 2, 1, 1, generator=g) - 0.5
    inside = (h - centre[:, :1]) ** 2 + (w - centre[:, 1:]) ** 2 < 0.2
    x = torch.where(inside, torch.rand(n, 3, 1, 1, generator=g), x)
    return ((x.clamp(0, 1) * 255).round() / 255).to(dtype)


def draws(n: int, seed: int = 0) -> Draws:
    """Streams of samples 0 .. n-1."""
    return Draws(seed, torch.arange(n))
