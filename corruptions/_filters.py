"""Linear filters: one-dimensional filters as matrices, images padded by mirroring, one kernel for all channels."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Border = Literal["nearest", "reflect", "mirror"]  # as scipy names them: aaa|abc, cba|abc, dcb|abc


def beyond(index: Tensor, n: int, border: Border) -> Tensor:
    """The pixel in 0..n-1 that the border rule assigns to each index, however far outside the index is."""
    if border == "nearest" or n == 1:
        return index.clamp(0, n - 1)
    last = 2 * n - 1 if border == "reflect" else 2 * n - 2  # i and last - i are the same pixel
    index = index % (2 * n if border == "reflect" else last)
    return torch.minimum(index, last - index)


@lru_cache(maxsize=64)
def gaussian_matrix(n: int, sigma: float, truncate: float, border: Border) -> Tensor:
    """G [n, n] with (G v)_i = sum_d g_d v_{i+d}, g_d ~ exp(-d^2 / 2 sigma^2) up to round(truncate sigma): float64."""
    radius = int(truncate * sigma + 0.5)
    d = torch.arange(-radius, radius + 1)
    g = torch.exp(-0.5 * (d.double() / sigma) ** 2) if radius else torch.ones(1, dtype=torch.float64)
    columns = beyond(torch.arange(n)[:, None] + d, n, border)
    return torch.zeros(n, n, dtype=torch.float64).scatter_add_(1, columns, (g / g.sum()).expand(n, -1))


def gaussian_blur(x: Tensor, sigma: float, truncate: float = 4.0, border: Border = "nearest") -> Tensor:
    """Each plane [..., H, W] convolved with a Gaussian, along columns, then along rows."""
    return along(x, *(gaussian_matrix(n, sigma, truncate, border) for n in x.shape[-2:]))


def along(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """R x C^T for each plane: a separable linear map [H, W] -> [len(R), len(C)]."""
    return rows.to(x) @ x @ columns.to(x).T


@lru_cache(maxsize=64)
def box_matrix(n: int, m: int) -> Tensor:
    """Resizing from n to m pixels: the mean of the pixels whose centres are in the new one; float64 [m, n].

    Pillow's box filter. When enlarging, it repeats the pixel that contains the new centre.
    """
    scale = n / m
    reach = max(scale, 1.0) / 2
    centre = (torch.arange(m, dtype=torch.float64)[:, None] + 0.5) * scale
    offset = torch.arange(n, dtype=torch.float64) + 0.5 - centre
    weight = ((offset > -reach) & (offset <= reach)).double()
    return weight / weight.sum(dim=1, keepdim=True)


def disk(radius: float, sigma: float) -> Tensor:
    """A uniform disk u^2 + v^2 <= radius^2, blurred by a Gaussian of 3 pixels (of 5 above radius 8), with sum 1."""
    blur = 1 if radius <= 8 else 2
    half = math.ceil(radius) + blur
    d = torch.arange(-half, half + 1, dtype=torch.float64)
    flat = (d[:, None] ** 2 + d**2 <= radius**2).double()
    t = torch.arange(-blur, blur + 1, dtype=torch.float64)
    g = torch.exp(-0.5 * (t / sigma) ** 2)
    g = g / g.sum()
    return F.conv2d((flat / flat.sum())[None, None], (g[:, None] * g)[None, None], padding=blur)[0, 0]


def filtered(x: Tensor, kernel: Tensor) -> Tensor:
    """Every plane correlated with one odd square kernel; images are padded by mirroring at their outermost pixels."""
    n, c, height, width = x.shape
    half = kernel.shape[-1] // 2
    rows, columns = (beyond(torch.arange(-half, s + half, device=x.device), s, "mirror") for s in (height, width))
    wide = x[:, :, rows][..., columns].reshape(n * c, 1, len(rows), len(columns))
    return F.conv2d(wide, kernel.to(x)[None, None]).view(x.shape)
