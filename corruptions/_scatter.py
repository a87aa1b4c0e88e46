"""The sequential pixel exchange of glass blur, in the published order, without a loop over pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from siegebench.draws import Draws


def scattered(size: tuple[int, int], d: int, rounds: int, swap: bool, draws: Draws) -> Tensor:
    """Where the value of each pixel comes from: int64 [n, H W], flat indices.

    Each round visits the pixels (h, w), h = H-d .. d+1 and in each row w = W-d .. d+1, and copies from (or swaps with)
    the pixel at h + dy, w + dx, with dy, dx uniform in {-d .. d-1}. Visits of pixels that are 2d rows or 2d columns
    apart touch different pixels, and so may trade places. Hence all visits with the same 2d (H-d-h) + (W-d-w) can be
    made at once: neighbours of theirs in the order that share a pixel have another such number, and keep their order.
    """
    height, width = size
    source = torch.arange(height * width, device=draws.ids.device).repeat(len(draws), 1)
    above, left = height - 2 * d, width - 2 * d  # visited rows and columns
    if above <= 0 or left <= 0:
        return source
    h = height - d - torch.arange(above, device=source.device)
    w = width - d - torch.arange(left, device=source.device)
    time = (2 * d * torch.arange(above)[:, None] + torch.arange(left)).flatten()
    order = time.argsort(stable=True)
    lengths = time.bincount().tolist()
    visited = (h[:, None] * width + w).flatten()[order.to(source.device)]
    for k in range(rounds):
        dy, dx = (draws.integers(2 * d, (above * left,), step=k, purpose=p) - d for p in ("down", "right"))
        other = visited + (dy * width + dx)[:, order.to(source.device)]
        for here, there in zip(visited.split(lengths), other.split(lengths, dim=1), strict=True):
            taken = source.gather(1, there)
            if swap:
                source.scatter_(1, there, source[:, here])
            source[:, here] = taken
    return source
