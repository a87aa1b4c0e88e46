"""Moving the pixels of an image: grids in pixels, and reading an image there."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def at(x: Tensor, rows: Tensor, columns: Tensor, padding: str = "reflection") -> Tensor:
    """Images x [n, C, H, W] read bilinearly at pixel coordinates [n, H, W] (or broadcast), in [0, 1]."""
    height, width = x.shape[-2:]
    scaled = [2 * c / max(1, size - 1) - 1 for c, size in ((columns, width), (rows, height))]
    grid = torch.stack([s.to(x).expand(len(x), height, width) for s in scaled], dim=-1)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode=padding, align_corners=True).clamp(0, 1)


def own(x: Tensor) -> tuple[Tensor, Tensor]:
    """The coordinates of the pixels themselves: (rows [H, 1], columns [1, W])."""
    height, width = x.shape[-2:]
    return torch.arange(height).to(x)[:, None], torch.arange(width).to(x)[None, :]


def rotated(x: Tensor, degrees: Tensor) -> Tensor:
    """Each image rotated about its centre, counterclockwise, by its angle [n]; the border is reflected."""
    rows, columns = own(x)
    cy, cx = (x.shape[-2] - 1) / 2, (x.shape[-1] - 1) / 2
    angle = torch.deg2rad(degrees.to(x)).view(-1, 1, 1)
    dy, dx = rows - cy, columns - cx
    return at(x, cy + dx * angle.sin() + dy * angle.cos(), cx + dx * angle.cos() - dy * angle.sin())


def moved(x: Tensor, pixels: Tensor) -> Tensor:
    """Each image moved to the right by its number of pixels [n]; the border is reflected."""
    rows, columns = own(x)
    return at(x, rows, columns - pixels.to(x).view(-1, 1, 1))
