"""The sequential pixel exchange of glass blur, in the published order, without a loop over pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from siegebench.draws import Draws


def scattered(size: tuple[int, int], d: int, rounds: int, swap: bool, draws: Draws) -> Tensor:
    """The source of the value of each pixel: int64 [n, H W], flat indices.

    Each round visits the pixels (h, w), h = H-d .. d+1 and in each row w = W-d .. d+1, and copies from (or swaps with)
    the pixel at h + dy, w + dx, with dy, dx uniform in {-d .. d-1}. Two visits can access the same pixel only if they
    are less than 2d rows and less than 2d columns apart. Then the earlier one has the smaller number
    t = 2d (H-d-h) + (W-d-w). So visits of equal t are made at once, in the order of t; the result is that of the loop.
    """
    height, width = size
    source = torch.arange(height * width, device=draws.ids.device).repeat(len(draws), 1)
    above, left = height - 2 * d, width - 2 * d  # visited rows and columns
    if above <= 0 or left <= 0:
        return source
    h = height - d - torch.arange(above, device=source.device)
    w = width - d - torch.arange(left, device=source.device)
    t = (2 * d * torch.arange(above)[:, None] + torch.arange(left)).flatten()
    order = t.argsort(stable=True)
    lengths = t.bincount().tolist()
    visited = (h[:, None] * width + w).flatten()[order.to(source.device)]
    for k in range(rounds):
        dy, dx = (draws.integers(2 * d, (above * left,), step=k, purpose=p) - d for p in ("down", "right"))
        other = visited + (dy * width + dx)[:, order.to(source.device)]
        for here, there in zip(visited.split(lengths), other.split(lengths, dim=1), strict=True):
            values = source.gather(1, there)
            if swap:
                source.scatter_(1, there, source[:, here])
            source[:, here] = values
    return source
