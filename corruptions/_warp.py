"""Resampling of images at other positions."""

from __future__ import annotations

import torch
from torch import Tensor

from ._filters import Border, beyond


def sampled(x: Tensor, rows: Tensor, columns: Tensor, border: Border) -> Tensor:
    """x'(h, w) = x(rows(h, w), columns(h, w)), bilinear between pixels.

    Args:
        x: [n, C, H, W].
        rows, columns: float positions in pixels [n, H, W]; may be outside the image.
        border: which pixels are used outside.
    """
    height, width = x.shape[-2:]
    top, left = rows.floor(), columns.floor()
    down, right = ((rows - top).to(x.dtype)[:, None], (columns - left).to(x.dtype)[:, None])
    up = [beyond(top.long() + k, height, border) * width for k in (0, 1)]
    side = [beyond(left.long() + k, width, border) for k in (0, 1)]

    def at(i: int, k: int) -> Tensor:
        index = (up[i] + side[k]).flatten(1)[:, None].expand(-1, x.shape[1], -1)
        return x.flatten(2).gather(2, index).view_as(x)

    return torch.lerp(torch.lerp(at(0, 0), at(0, 1), right), torch.lerp(at(1, 0), at(1, 1), right), down)


def affine_through(moved: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The source position of each pixel when three corners of a square in the centre move: rows and columns [n, H, W].

    The corners (x, y) are (c + q, d + q), (c + q, d - q), (c - q, d - q); c = W // 2, d = H // 2, q = min(H, W) // 3.

    Args:
        moved: [n, 3, 2], displacements (x, y) of the corners in pixels; float64.
    """
    c, d, q = width // 2, height // 2, min(height, width) // 3
    corners = moved.new_tensor([[c + q, d + q], [c + q, d - q], [c - q, d - q]])
    lifted = torch.cat([corners + moved, moved.new_ones(len(moved), 3, 1)], dim=2)
    back = torch.linalg.solve(lifted, corners.expand(len(moved), 3, 2))  # [x y 1] back = source position
    w, h = (torch.arange(s, device=moved.device, dtype=moved.dtype) for s in (width, height))
    source = back[:, 0, None, None] * w[:, None] + back[:, 1, None, None] * h[:, None, None] + back[:, 2, None, None]
    return source[..., 1], source[..., 0]
