"""Poisson counts from uniform numbers: exact, and without a loop over counts."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from siegebench.draws import Draws

LEVELS = 255  # of the table: 8-bit pixels are exactly on a level
NEAR = 1e-4  # in levels; 8-bit pixels stored in float32 are closer to their level than this


def poisson(x: Tensor, c: int, draws: Draws) -> Tensor:
    """k ~ Poisson(c x) for each value of x in [0, 1]: float64 of the same shape.

    Sums of Poisson counts are Poisson, so k = k1 + k2 with means c i/255, i = floor(255 x), and the rest, below c/255.
    k1 is read from a table of distribution functions, k2 is found by counting up. k2 is 0 for 8-bit images: values
    within NEAR of a level are treated as that level.
    """
    level = x.double() * LEVELS
    i = (level + NEAR).floor_()
    rest = level - i
    rest = torch.where(rest < NEAR, 0, rest * (c / LEVELS))
    table = _table(c).to(x.device)
    row = table.shape[1]
    # row i of the table holds i + P(k1 <= 0), i + P(k1 <= 1), ...: one sorted list, searched at i + u
    k = torch.searchsorted(table.view(-1), _uniform(x, draws, "photons").add_(i), right=True) - i.long() * row
    k = k.clamp_(max=row - 1).double()
    return k + _counted(rest, _uniform(x, draws, "photons between levels")) if bool(rest.any()) else k


def _uniform(x: Tensor, draws: Draws, purpose: str) -> Tensor:
    """U[0, 1) with 43 random bits, all that float64 keeps when a row number is added; one for each value."""
    return ((draws.bits(tuple(x.shape[1:]), purpose=purpose) >> 21) & ((1 << 43) - 1)).double().mul_(2.0**-43)


@lru_cache(maxsize=16)
def _table(c: int) -> Tensor:
    """i + P(k <= j | mean c i/255), float64 [256, J]; counts of J and more have a probability below 1e-15."""
    longest = math.ceil(c + 9 * math.sqrt(c) + 30)
    j = torch.arange(longest, dtype=torch.float64)
    mean = torch.arange(LEVELS + 1, dtype=torch.float64)[:, None] * c / LEVELS
    # for mean 0 only j = 0 has a probability; xlogy(0, 0) is 0
    p = torch.exp(torch.xlogy(j, mean) - mean - torch.lgamma(j + 1))
    return torch.arange(LEVELS + 1)[:, None] + p.cumsum(dim=1).clamp(max=1 - 2.0**-44)


def _counted(mean: Tensor, u: Tensor) -> Tensor:
    """The smallest k with u < P(count <= k), for small means: adds up the probabilities one by one."""
    p = (-mean).exp()
    total, k = p.clone(), torch.zeros_like(mean)
    for j in range(1, 64):
        above = u >= total
        if not bool(above.any()):
            break
        k = k + above
        p = p * mean / j
        total = total + p
    return k
