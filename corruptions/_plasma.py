"""Plasma: a random height map by the diamond-square algorithm."""

from __future__ import annotations

import torch
from torch import Tensor

from siegebench.draws import Draws


def plasma(size: tuple[int, int], decay: float, draws: Draws, purpose: str) -> Tensor:
    """Height maps in [0, 1], float32 [n, H, W].

    Fournier, Fussell, Carpenter, "Computer rendering of stochastic models", CACM 1982. The map is a periodic square of
    side S >= H, W pixels, S a power of two. While the step s is 2 or more, the centre of each square of side s is set,
    then the centre of each diamond: the mean of its four corners plus a^2 U(-1, 1). After that s is halved and a is
    divided by `decay`; a starts at 100. The whole map is rescaled to [0, 1]; its upper left part is returned.
    """
    side = 1 << (max(*size, 2) - 1).bit_length()
    m = torch.zeros(len(draws), side, side, device=draws.ids.device)
    step, a = side, 100.0
    while step >= 2:
        half, shape = step // 2, (side // step, side // step)
        r = [a * a * (2 * draws.uniform(shape, step=step, purpose=f"{purpose} {k}") - 1) for k in range(3)]
        corner = m[:, ::step, ::step].clone()
        right, below = corner.roll(-1, dims=2), corner.roll(-1, dims=1)
        centre = (corner + right + below + right.roll(-1, dims=1)) / 4 + r[0]
        m[:, half::step, half::step] = centre
        m[:, ::step, half::step] = (corner + right + centre + centre.roll(1, dims=1)) / 4 + r[1]
        m[:, half::step, ::step] = (corner + below + centre + centre.roll(1, dims=2)) / 4 + r[2]
        step, a = half, a / decay
    low, high = m.amin(dim=(1, 2), keepdim=True), m.amax(dim=(1, 2), keepdim=True)
    return ((m - low) / (high - low))[:, : size[0], : size[1]]
