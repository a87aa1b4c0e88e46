"""Checks of a gradient without gradients: finite differences, random points, the network without its defense."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from siegebench import ops
from siegebench.classifier import Classifier, Wrapped
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.threat import ThreatModel

STEP = 0.05  # length of a finite difference, in L2 for 3x32x32 values; it grows with the root of their number
DIRECTIONS = 5
CORRELATED, AGREED = 0.5, 0.75  # finite differences and gradients of a smooth network do so more


@dataclass(frozen=True)
class Slopes:
    """Changes of the margin along random directions: measured, and predicted by the gradient.

    Attributes:
        correlation: of the two.
        agreement: fraction of the pairs with the same sign.
        pairs: how many there are.
    """

    correlation: float
    agreement: float
    pairs: int

    @property
    def apart(self) -> bool:
        """Whether the gradient predicts the changes too badly; the limits are lower for few pairs."""
        low = AGREED - 2 * (AGREED * (1 - AGREED) / self.pairs) ** 0.5
        return self.correlation < CORRELATED - 2 / self.pairs**0.5 or self.agreement < low


def slopes(oracle: Oracle, x: Tensor, y: Tensor, draws: Draws) -> Slopes | None:
    """Central differences of the margin against its gradient, with frozen noise; None where all gradients are zero."""
    same = oracle.frozen()

    def margin(at: Tensor) -> Tensor:
        return ops.margin(same.logits(at), y).double()

    g, _, _ = same.gradient(x, lambda z: ops.margin(z, y))
    steep = (ops.size(g, "linf") > 0).nonzero().squeeze(1)
    if not len(steep):
        return None
    h = STEP * (x[0].numel() / 3072) ** 0.5
    measured, foretold = [], []
    for k in range(DIRECTIONS):
        u = h * ops.normalise(draws.normal(tuple(x.shape[1:]), k, "direction").to(x), "l2")
        up, down = (x + u).clamp(oracle.kind.low, oracle.kind.high), (x - u).clamp(oracle.kind.low, oracle.kind.high)
        measured.append((margin(up) - margin(down))[steep])
        foretold.append(ops.flat(g * (up - down)).double().sum(dim=1)[steep])
    fd, ad = torch.cat(measured), torch.cat(foretold)
    fd, ad = (v / v.abs().amax().clamp(min=1e-300) for v in (fd, ad))
    together = torch.corrcoef(torch.stack([fd, ad]))[0, 1].nan_to_num(0.0) if len(fd) > 1 else torch.ones(())
    return Slopes(float(together), float((fd.sign() == ad.sign()).double().mean()), len(fd))


def agreement_of_means(oracle: Oracle, x: Tensor, y: Tensor) -> float:
    """Median cosine of two independent mean gradients of the margin, as an attack on a randomised model takes them."""
    one, two = (ops.flat(oracle.gradient(x, lambda z: ops.margin(z, y))[0]).double() for _ in range(2))
    return float(torch.nn.functional.cosine_similarity(one, two).median())


def by_chance(oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws, tries: int) -> Tensor:
    """Which images any of some random points of the ball breaks, bool [n]; every second one is on its surface."""
    found = torch.zeros_like(y, dtype=torch.bool)
    for t in range(tries):
        u = 2 * draws.uniform(tuple(x.shape[1:]), t, "chance").to(x) - 1
        delta = u if threat.norm == "linf" and t % 2 else ops.normalise(u, threat.norm)
        point = ops.project(x + threat.eps * delta, x, threat.norm, threat.eps)
        found |= oracle.logits(point).argmax(dim=1) != y
    return found


def inside(model: Classifier) -> Classifier | None:
    """The network that a defense wraps, without the defense; None if there is none."""
    network = model
    while isinstance(network, Wrapped):
        network = network.inner
    return None if network is model else network
