"""Random views of images, as self-supervised methods train on: crop, mirror, colours, grey. Differentiable."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench.draws import Draws

GREY = (0.299, 0.587, 0.114)
# RGB to luminance and two axes of colour (YIQ); a change of hue turns the latter two
YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))
NUMBERS = 11  # random numbers of a view


def drawn(draws: Draws, step: int = 0) -> Tensor:
    """The random numbers of one view for each stream, [n, NUMBERS], uniform in [0, 1)."""
    return draws.uniform((NUMBERS,), step, "view")


def views(x: Tensor, u: Tensor, smallest: float, flip: float) -> Tensor:
    """Views [n, C, H, W] of images x, of the same size.

    A crop of area `smallest` to 1 and proportion 3/4 to 4/3, resized; mirrored with the probability `flip`; with the
    probability 0.8 other brightness, contrast and saturation (each by a factor 0.6 to 1.4) and hue (up to 36 degrees);
    with the probability 0.2 grey.

    Args:
        u: random numbers [n, NUMBERS] of `drawn`.
    """
    u = u.to(x)
    x = _cropped(x, u, smallest, flip)
    coloured = _coloured(x, u)
    x = torch.where((u[:, 9] < 0.8).view(-1, 1, 1, 1), coloured, x)
    return torch.where((u[:, 10] < 0.2).view(-1, 1, 1, 1), _grey(x).expand_as(x), x)


def _cropped(x: Tensor, u: Tensor, smallest: float, flip: float) -> Tensor:
    area = smallest + (1 - smallest) * u[:, 0]
    proportion = ((2 * u[:, 1] - 1) * math.log(4 / 3)).exp()
    width, height = (area * proportion).sqrt().clamp(max=1), (area / proportion).sqrt().clamp(max=1)
    mirrored = torch.where(u[:, 4] < flip, -1.0, 1.0).to(x)
    zero = torch.zeros_like(width)
    # rows of the affine map from positions of the view to those of the image, both in [-1, 1]
    across = torch.stack([width * mirrored, zero, (2 * u[:, 2] - 1) * (1 - width)], dim=1)
    down = torch.stack([zero, height, (2 * u[:, 3] - 1) * (1 - height)], dim=1)
    grid = F.affine_grid(torch.stack([across, down], dim=1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _coloured(x: Tensor, u: Tensor) -> Tensor:
    brightness, contrast, saturation = ((0.6 + 0.8 * u[:, i]).view(-1, 1, 1, 1) for i in (5, 6, 7))
    x = (x * brightness).clamp(0, 1)
    mean = _grey(x).mean(dim=(2, 3), keepdim=True)
    x = (mean + contrast * (x - mean)).clamp(0, 1)
    if x.shape[1] != 3:
        return x
    grey = _grey(x)
    x = (grey + saturation * (x - grey)).clamp(0, 1)
    angle = 2 * math.pi * 0.1 * (2 * u[:, 8] - 1)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    turn = torch.stack([zero + 1, zero, zero, zero, cos, -sin, zero, sin, cos], dim=1).view(-1, 3, 3)
    yiq = x.new_tensor(YIQ)
    return torch.einsum("nij,njhw->nihw", torch.linalg.inv(yiq) @ turn @ yiq, x).clamp(0, 1)


def _grey(x: Tensor) -> Tensor:
    return (x * x.new_tensor(GREY).view(1, 3, 1, 1)).sum(dim=1, keepdim=True) if x.shape[1] == 3 else x
