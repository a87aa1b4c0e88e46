"""Zoom into the centre."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor


def cropped(n: int, z: float) -> int:
    """Number of pixels along an axis of n that are visible at zoom z."""
    return math.ceil(n / z)


def enlarged(x: Tensor, size: tuple[int, int], z: float) -> Tensor:
    """The centre [H, W] of a crop [n, C, ceil(H/z), ceil(W/z)] enlarged by z (bilinear, align_corners)."""
    big = (round(x.shape[-2] * z), round(x.shape[-1] * z))
    out = F.interpolate(x, size=big, mode="bilinear", align_corners=True)
    top, left = (big[0] - size[0]) // 2, (big[1] - size[1]) // 2
    return out[..., top : top + size[0], left : left + size[1]]


def zoomed(x: Tensor, z: float) -> Tensor:
    """The centre of each image enlarged by z >= 1 to the image's size."""
    height, width = x.shape[-2:]
    h, w = cropped(height, z), cropped(width, z)
    top, left = (height - h) // 2, (width - w) // 2
    return enlarged(x[..., top : top + h, left : left + w], (height, width), z)
