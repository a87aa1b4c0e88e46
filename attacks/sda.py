"""SDA: the sparse dynamic attack on films of events, which flips single events and takes needless flips back."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from siegebench import ops
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.threat import Norm, ThreatModel
from siegebench.types import Count, MinimalAttack

Reduction = Literal["none", "prefix", "singles"]
AT_ONCE = 64  # flips of one film that are tried in one pass
TINY = 1e-20  # below every gradient that lowers the loss


@dataclass(frozen=True, kw_only=True)
class SDA(MinimalAttack):
    """Generation and reduction of flips of x in {0, 1}, with L = z_y - max_{j != y} z_j.

    Lun, Feng, Ni, Liang, Wang, Li, Yu, Cui, "Towards Effective and Sparse Adversarial Attack on Spiking Neural Networks
    via Breaking Invisible Surrogate Gradients", CVPR 2025, arXiv 2503.03272.
        generation  n = 0, 1, ...: the k = 10 (n + 1) entries, not selected yet, whose flip lowers L most by the
                    gradient; each is flipped alone, and selected if FD = L(flipped) - L <= 0. The next x has all
                    selected entries flipped. Ends when x is misclassified.
        reduction   binary search for the largest number of selected flips, weakest |FD| first, that can be taken back
                    while x stays misclassified (`prefix`). Then each flip that is left is taken back alone, and the
                    same search runs over those whose return leaves x misclassified, smallest L first, until no
                    single flip can be taken back (`singles`)
    A film that is never misclassified comes back unchanged. With `spike_gradient` around it, it uses another derivative
    of the spikes.

    Random: which entries are tried when the gradient names fewer than k. Cost per film: 10 (n + 1) + 1 forward passes
    and one backward pass in iteration n, about log2 of the number of flips for `prefix`, and for `singles` the number
    of flips in each of a few rounds.

    Differs from the paper: films are attacked together, and each stops by itself; at most `iterations` instead of 500.
    L is not cut off at 0, so that FD means something for a flip that succeeds. The reduction of the paper is `prefix`
    alone: |FD| was measured at another x, and one flip that is needed ends its search.

    Attributes:
        iterations: most iterations n.
        tested: try every flip alone; without it, all k are selected, ranked by their gradient: plain top-k gradients.
        reduction: how needless flips are taken back; `none` keeps them.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("l0",)
    restricted: ClassVar[bool] = True

    iterations: Count = 30
    tested: bool = True
    reduction: Reduction = "singles"

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
        # |FD| of the selected entries, -1 of all others
        strength = torch.full_like(ops.flat(x), -1.0)
        done = torch.zeros_like(y, dtype=torch.bool)
        live = torch.arange(len(x), device=x.device)
        for n in range(self.iterations):
            now = flipped(x[live], strength[live] >= 0)
            g, z, _ = oracle[live].gradient(now, partial(lead, y=y[live]))
            done[live] = z.argmax(dim=1) != y[live]
            more = (~done[live]).nonzero().squeeze(1)
            if not len(more):
                break
            live, now, g, loss = live[more], now[more], ops.flat(g[more]), lead(z[more], y[live[more]])
            gain = -(1 - 2 * ops.flat(now)) * g  # by how much a flip lowers L, to first order
            noise = TINY * draws[live].uniform(gain.shape[1:], n, "entries").to(gain)
            gain = torch.where(gain > 0, gain, noise).masked_fill(strength[live] >= 0, -1.0)
            k = min(10 * (n + 1), gain.shape[1])
            first, entries = gain.topk(k, dim=1)
            change = self._tried(oracle[live], now, y[live], entries) - loss[:, None] if self.tested else -first
            kept = torch.where((change <= 0) & (first >= 0), change.abs(), strength[live].gather(1, entries))
            strength[live] = strength[live].scatter(1, entries, kept)
        else:
            done[live] = oracle[live].labels(flipped(x[live], strength[live] >= 0)) != y[live]
        strength = strength.masked_fill(~done[:, None], -1.0)
        kept = strength >= 0
        if self.reduction != "none":
            kept = self._taken_back(oracle, x, y, kept, strength)
        if self.reduction == "singles":
            kept = self._minimal(oracle, x, y, kept)
        return flipped(x, kept)

    @staticmethod
    def _tried(oracle: Oracle, x: Tensor, y: Tensor, entries: Tensor) -> Tensor:
        """L after each of the flips alone, [n, k]."""
        found = []
        for part in entries.split(AT_ONCE, dim=1):
            k = part.shape[1]
            alone = torch.zeros(len(x), k, x[0].numel(), dtype=torch.bool, device=x.device)
            alone.scatter_(2, part[:, :, None], True)
            z = oracle.repeat(k).logits(flipped(x.repeat_interleave(k, dim=0), alone.flatten(0, 1)))
            found.append(lead(z, y.repeat_interleave(k)).view(len(x), k))
        return torch.cat(found, dim=1)

    @staticmethod
    def _taken_back(oracle: Oracle, x: Tensor, y: Tensor, kept: Tensor, strength: Tensor) -> Tensor:
        """Flips [n, numbers of a film] that stay: without as many of those with the smallest strength as is found.

        Flips with a negative strength are not taken back.
        """
        may = kept & (strength >= 0)
        rank = strength.masked_fill(~may, torch.inf).argsort(dim=1, stable=True).argsort(dim=1)
        # `low` flips can be taken back, `high` cannot; without any flip, the film is classified right
        low, high = torch.zeros_like(y), torch.minimum(may.sum(dim=1) + 1, kept.sum(dim=1))
        while bool((high - low > 1).any()):
            middle = (low + high) // 2
            rows = (high - low > 1).nonzero().squeeze(1)
            fewer = kept[rows] & ~(may[rows] & (rank[rows] < middle[rows, None]))
            wrong = oracle[rows].labels(flipped(x[rows], fewer)) != y[rows]
            low[rows] = torch.where(wrong, middle[rows], low[rows])
            high[rows] = torch.where(wrong, high[rows], middle[rows])
        return kept & ~(may & (rank < low[:, None]))

    def _minimal(self, oracle: Oracle, x: Tensor, y: Tensor, kept: Tensor) -> Tensor:
        """Flips of which none can be taken back alone."""
        kept = kept.clone()
        live = kept.any(dim=1).nonzero().squeeze(1)
        while len(live):
            after = torch.full_like(ops.flat(x[live]), -1.0)
            count = kept[live].sum(dim=1)
            for k in count.unique().tolist():
                same = (count == k).nonzero().squeeze(1)
                rows = live[same]
                entries = kept[rows].nonzero()[:, 1].view(-1, k)
                loss = self._tried(oracle[rows], flipped(x[rows], kept[rows]), y[rows], entries)
                order = loss.argsort(dim=1, stable=True).argsort(dim=1).to(after)
                after[same] = after[same].scatter(1, entries, torch.where(loss < 0, order, -1.0))
            fewer = self._taken_back(oracle[live], x[live], y[live], kept[live], after)
            changed = (fewer != kept[live]).any(dim=1)
            kept[live] = fewer
            live = live[changed]
        return kept


def lead(z: Tensor, y: Tensor) -> Tensor:
    """L = z_y - max_{j != y} z_j, [n]; negative for a misclassified film."""
    return -ops.margin(z, y)


def flipped(x: Tensor, which: Tensor) -> Tensor:
    """x with the entries `which` [n, numbers of a film] turned from 0 to 1 or from 1 to 0."""
    return torch.where(which.view_as(x), 1 - x, x)
