"""Saliency maps: how they are normalised, compared and drawn."""

from __future__ import annotations

import torch
from torch import Tensor

from siegebench import ops

SHOWN = 6  # images in the pictures of a measure


def saliency(g: Tensor) -> Tensor:
    """|g| summed over the colours, [n, C, H, W] to [n, H, W], with sum 1; zero where the gradient is."""
    h = g.abs().sum(dim=1)
    return h / ops.over(h.sum(dim=(1, 2)).clamp(min=torch.finfo(h.dtype).tiny), h)


def own(z: Tensor, c: Tensor) -> Tensor:
    """The logit of class c [n], of logits z [n, K]."""
    return z.gather(1, c[:, None]).squeeze(1)


def ranks(v: Tensor) -> Tensor:
    """Ranks of the values of each row, [n, d]; equal values share the mean of their ranks."""
    v = v.contiguous()
    ordered = v.sort(dim=1).values
    return (torch.searchsorted(ordered, v) + torch.searchsorted(ordered, v, right=True)).double() / 2


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Rank correlation of two maps of each image, [n]; NaN where a map is constant."""
    u, v = (r - r.mean(dim=1, keepdim=True) for r in (ranks(ops.flat(a)), ranks(ops.flat(b))))
    return (u * v).sum(dim=1) / (u.square().sum(dim=1) * v.square().sum(dim=1)).sqrt()


def overlap(a: Tensor, b: Tensor, part: float = 0.1) -> Tensor:
    """The share of the `part` strongest pixels that two maps have in common, [n]."""
    k = max(1, round(part * a[0].numel()))
    chosen = [torch.zeros_like(ops.flat(m)).scatter(1, ops.flat(m).topk(k, dim=1).indices, 1.0) for m in (a, b)]
    return (chosen[0] * chosen[1]).sum(dim=1) / k


def drawn(h: Tensor, channels: int) -> Tensor:
    """Maps [n, H, W] as grey images [n, channels, H, W]; the 99 % quantile of each is white."""
    top = ops.flat(h).quantile(0.99, dim=1).clamp(min=torch.finfo(h.dtype).tiny)
    return (h / ops.over(top, h)).clamp(0, 1)[:, None].expand(-1, channels, -1, -1)


def side_by_side(*images: Tensor) -> Tensor:
    """Images [n, C, H, W] as one row each, with a white line between them."""
    n, channels, height, _ = images[0].shape
    line = images[0].new_ones(n, channels, height, 1)
    parts = [part for image in images for part in (line, image)]
    return torch.cat(parts[1:], dim=3)
