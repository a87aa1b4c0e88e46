"""Poisson counts from uniform numbers, exactly and without a loop over counts."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from siegebench.draws import Draws

LEVELS = 255  # of the table: 8-bit pixels lie on it
NEAR = 1e-4  # of a level; float32 pixels of 8 bits are nearer to theirs


def poisson(x: Tensor, c: int, draws: Draws) -> Tensor:
    """k ~ Poisson(c x) for each value of x in [0, 1]: float64 of the same shape.

    Sums of Poisson counts are Poisson, so k = k1 + k2 with means c i/255, i = floor(255 x), and the rest, below c/255.
    k1 is read from a table of distribution functions, k2 found by counting up. k2 is 0 for 8-bit images: what is nearer
    to a level than NEAR is taken for it.
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
    """U[0, 1) with 43 random bits, as many as are left when a row's number is added; float64, one for each value."""
    return ((draws.bits(tuple(x.shape[1:]), purpose=purpose) >> 21) & ((1 << 43) - 1)).double().mul_(2.0**-43)


@lru_cache(maxsize=16)
def _table(c: int) -> Tensor:
    """i + P(k <= j | mean c i/255), float64 [256, J]; counts of J and more have a chance below 1e-15."""
    longest = math.ceil(c + 9 * math.sqrt(c) + 30)
    j = torch.arange(longest, dtype=torch.float64)
    mean = torch.arange(LEVELS + 1, dtype=torch.float64)[:, None] * c / LEVELS
    # where the logarithm of the mean is -inf only j = 0 counts: 0 * -inf is taken as 0
    chance = torch.exp(torch.xlogy(j, mean) - mean - torch.lgamma(j + 1))
    return torch.arange(LEVELS + 1)[:, None] + chance.cumsum(dim=1).clamp(max=1 - 2.0**-44)


def _counted(mean: Tensor, u: Tensor) -> Tensor:
    """The smallest k with u < P(count <= k), for small means: adds up the chances one by one."""
    chance = (-mean).exp()
    total, k = chance.clone(), torch.zeros_like(mean)
    for j in range(1, 64):
        above = u >= total
        if not bool(above.any()):
            break
        k = k + above
        chance = chance * mean / j
        total = total + chance
    return k
