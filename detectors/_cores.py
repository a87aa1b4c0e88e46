"""Groups of (source, target) pairs whose triggers transfer to one another but not to other pairs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Inference:
    """Whether a group of pairs is a backdoor.

    Attributes:
        core: indices of the pairs that are believed to be the map of the backdoor.
        cohesion: core-periphery score of the core; -inf if the core is a single pair.
        score: robust z-score of the core's 1 / size.
        theta: threshold on it.
    """

    core: tuple[int, ...]
    cohesion: float
    score: float
    theta: float


def cohesion(core: Tensor, a: Tensor) -> float:
    """Core-periphery score H of a core, indices [n >= 2], in a transfer map A [P, P].

    H = min_{i in core} mean_{j in core, j != i} (A_ij + A_ji) / 2  -  max_{k outside} mean_{i in core} A_ik
    """
    mutual = ((a + a.T) / 2)[core][:, core]
    inside = (mutual.sum(dim=1) - mutual.diagonal()) / (len(core) - 1)
    others = torch.ones(len(a), dtype=torch.bool)
    others[core] = False
    outside = float(a[core][:, others].mean(dim=0).max()) if bool(others.any()) else 0.0
    return float(inside.min()) - outside


def best_core(a: Tensor, sources: Tensor, starts: int) -> tuple[Tensor, float]:
    """(core, its H) by a greedy search in a transfer map A [P, P] with the source of each pair [P].

    From each of the `starts` largest (A_ij + A_ji) / 2 of two pairs with different sources, the pair that maximises H
    is added, one at a time and at most one of a source. The best core found during the search is kept.
    """
    mutual = (a + a.T) / 2
    allowed = (sources[:, None] != sources).triu(diagonal=1)
    count = min(starts, int(allowed.sum()))
    first = torch.where(allowed, mutual, -torch.inf).flatten().topk(count).indices
    best, highest = torch.zeros(0, dtype=torch.long), -math.inf
    for edge in first.tolist():
        core = torch.tensor(divmod(edge, len(a)))
        while True:
            h = cohesion(core, a)
            if h > highest:
                best, highest = core, h
            free = (~torch.isin(sources, sources[core])).nonzero().squeeze(1)
            if not len(free):
                break
            core = torch.cat([core, free[_with_each(core, free, a, mutual).argmax()][None]])
    return best, highest


def _with_each(core: Tensor, free: Tensor, a: Tensor, mutual: Tensor) -> Tensor:
    """H of the core with each of the free pairs added, [len(free)]."""
    n = len(core)
    inner = mutual[core][:, core]
    sums = inner.sum(dim=1) - inner.diagonal()
    old = (sums + mutual[free][:, core]) / n  # [free, core]
    own = mutual[free][:, core].mean(dim=1)
    outside = (a[core].sum(dim=0) + a[free]) / (n + 1)  # [free, P]
    outside[:, core] = -torch.inf
    outside[torch.arange(len(free)), free] = -torch.inf
    reach = outside.amax(dim=1)
    return torch.minimum(old.amin(dim=1), own) - torch.where(reach.isinf(), 0.0, reach)


def infer(sizes: Tensor, a: Tensor, sources: Tensor, starts: int, level: float) -> Inference:
    """The best core against all other pairs, by 1 / size; a single pair if no core holds together (H <= 0).

    score = (median of the core - median of the others) / (1.4826 MAD of the others); theta is what the largest of as
    many standard normal numbers exceeds with probability `level`.
    """
    u = 1 / sizes
    core, h = best_core(a, sources, starts)
    if h <= 0:
        core, h = u.argmax()[None], -math.inf
    others = torch.ones(len(u), dtype=torch.bool)
    others[core] = False
    null = u[others]
    centre = null.median()
    mad = (null - centre).abs().median().clamp(min=1e-3 * centre)
    score = float((u[core].median() - centre) / (1.4826 * mad))
    quantile = torch.tensor(2 * (1 - level) ** (1 / len(null)) - 1, dtype=torch.float64)
    return Inference(tuple(core.tolist()), h, score, float(math.sqrt(2) * quantile.erfinv()))
