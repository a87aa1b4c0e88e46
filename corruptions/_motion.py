"""Motion blur along a line, as ImageMagick computes it."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def motion_blur(x: Tensor, angle: Tensor, radius: float, sigma: float) -> Tensor:
    """x'(p) = sum_i k_i x(p + round(i (cos a, sin a))), k_i ~ exp(-i^2 / 2 sigma^2), i = 0 .. 2 ceil(radius).

    The kernel is one-sided and offsets are whole pixels. Outside the image the border pixel is repeated.

    Args:
        x: [n, C, H, W].
        angle: [n], in degrees; 0 takes pixels from the right, 90 from below.
        radius: half the length of the line in pixels.
        sigma: of the weights along the line; those beyond 7 sigma are left out.
    """
    height, width = x.shape[-2:]
    i = torch.arange(min(2 * math.ceil(radius), math.ceil(7 * sigma)) + 1, dtype=torch.float64, device=x.device)
    k = torch.exp(-0.5 * (i / sigma) ** 2)
    k = k / k.sum()
    turn = angle.double()[:, None] * (math.pi / 180)
    down, right = (torch.ceil(i * f - 0.5).long() for f in (turn.sin(), turn.cos()))  # [n, taps]
    rows = (torch.arange(height, device=x.device) + down[..., None]).clamp(0, height - 1)
    columns = (torch.arange(width, device=x.device) + right[..., None]).clamp(0, width - 1)
    pixels, out = x.flatten(2), torch.zeros_like(x)
    for tap, weight in enumerate(k.tolist()):
        at = (rows[:, tap, :, None] * width + columns[:, tap, None, :]).flatten(1)
        out += weight * pixels.gather(2, at[:, None].expand(-1, x.shape[1], -1)).view_as(x)
    return out
