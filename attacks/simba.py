"""SimBA: steps along the directions of an orthonormal basis, in either sign, kept if the loss rises."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from siegebench import ops
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.search import Budget, keep
from siegebench.threat import Access, Norm, ThreatModel
from siegebench.types import Attack, Count, Positive

REACH = 2.0  # L2 length of all steps of the default size together, in radii of the ball


def cosines(n: int) -> Tensor:
    """The orthonormal DCT-II basis, one vector per row, from low to high frequency: float64 [n, n]."""
    k = torch.arange(n, dtype=torch.float64)
    basis = torch.cos(math.pi / n * k[:, None] * (k[None] + 0.5)) * math.sqrt(2 / n)
    basis[0] /= math.sqrt(2)
    return basis


MAKE: dict[str, Callable[[int], Tensor]] = {"dct": cosines, "pixel": torch.eye}
ROUNDS = {"dct": ("dct",), "pixel": ("pixel",), "both": ("dct", "pixel")}


@dataclass(frozen=True, kw_only=True)
class SimBA(Attack):
    """For q of an orthonormal basis in random order: x - step q, or else x + step q, if the loss rises.

    Guo, Gardner, You, Wilson, Weinberger, "Simple Black-box Adversarial Attacks", ICML 2019, arXiv 1905.07121. The
    basis consists of single pixels in random order, or of cosines over each channel (SimBA-DCT), low frequencies first.
    Without clipping, k successful steps have L2 length sqrt(k) step.

    Random: the order of the basis, drawn for each sample. Cost per sample: one query for the clean image and one or two
    per direction, at most `queries` in all, or fewer if the threat model allows fewer. A sample stops once it is
    misclassified; a sample with fewer than two queries is not attacked.

    Differs from the paper: the margin instead of the probability of the true class, which hardly changes where the
    network is confident. Every image is projected onto the eps-ball and the box (the authors bound L2 by the number of
    steps). The step size follows eps and the granted queries (the authors: 0.2). After the whole basis, a sample starts
    again in a new order. By default, the first round takes cosines, the second one pixels, and so on: once all cosines
    have been tried, pixels find more than the same cosines again.

    Attributes:
        queries: largest number of queries per sample.
        basis: `pixel`, `dct`, or `both`: `dct` and `pixel`, a whole round each in turn.
        step: L2 step size. Default: REACH r / sqrt(k), where r is the L2 radius of the ball (eps sqrt(n) for Linf) and
            k the number of directions that the granted queries can try, at 1.5 queries each and at most n. With REACH =
            1, k successful steps would just fill the ball.
        low: for cosines, the fraction of each axis whose frequencies come first, in random order; higher frequencies
            follow in frames a quarter as wide (the authors: 28 and then 7 of 224).
        loss: loss that has to rise. `ce` rises when the paper's probability of the true class falls.
    """

    queries: Count = 10_000
    basis: Literal["pixel", "dct", "both"] = "both"
    step: Positive | None = None
    low: Positive = 0.125
    loss: Literal["margin", "ce"] = "margin"

    needs: ClassVar[Access] = "score"
    aims: ClassVar[bool] = True
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
        channels, height, width = x.shape[1:]
        rounds = ROUNDS[self.basis]
        rows, columns = (torch.stack([MAKE[basis](side) for basis in rounds]).to(x) for side in (height, width))
        x_adv, budget = x.clone(), Budget(oracle, y, self.queries)
        live = budget.rows(least=2)
        if not len(live):
            return x_adv
        # state of the samples still attacked: their rows, the image, its loss, the order of the basis, the
        # direction that is tried (counted over all rounds through the basis) and its sign
        length = self._length(budget.granted, x[0].numel(), threat).to(x.dtype)
        x0, image, value = x[live], x[live], self._gain(oracle[live], budget.logits(live, x[live]), y[live])
        order = self._order(draws[live], torch.zeros_like(live), (channels, height, width))
        tried, side = torch.zeros_like(live), torch.full_like(value, -1)
        while len(live):
            at = order.gather(1, (tried % order.shape[1])[:, None]).squeeze(1)
            channel, u, v = at // (height * width), at // width % height, at % width
            q = torch.zeros_like(image)
            turn = tried // order.shape[1] % len(rounds)
            q[torch.arange(len(at), device=at.device), channel] = (
                rows[turn, u][:, :, None] * columns[turn, v][:, None, :]
            )
            trial = threat.project(image + ops.over(length[live] * side, q) * q, x0)
            z = budget.logits(live, trial)
            now = self._gain(oracle[live], z, y[live])
            better = now > value
            image = torch.where(ops.over(better, image), trial, image)
            value = torch.where(better, now, value)
            done = better | (side > 0)
            tried, side = tried + done, torch.where(done, -1.0, 1.0).to(side)
            again = (done & (tried % order.shape[1] == 0)).nonzero().squeeze(1)
            if len(again):
                order[again] = self._order(draws[live[again]], tried[again], (channels, height, width))
            broken = ops.hit(z.argmax(dim=1), y[live], oracle[live].goal)
            image = torch.where(ops.over(broken, image), trial, image)
            x_adv[live] = image
            rest = ~broken & budget.open(live)
            live, x0, image, value, order, tried, side = keep(rest, live, x0, image, value, order, tried, side)
        return x_adv

    def _length(self, granted: Tensor, n: int, threat: ThreatModel) -> Tensor:
        """L2 step size of samples with these numbers of queries and n pixels, float64 [samples]."""
        if self.step is not None:
            return torch.full_like(granted, self.step, dtype=torch.float64)
        radius = threat.eps * math.sqrt(n) if threat.norm == "linf" else threat.eps
        return REACH * radius / (granted.double() / 1.5).clamp(1, n).sqrt()

    def _gain(self, oracle: Oracle, z: Tensor, y: Tensor) -> Tensor:
        return ops.aimed(self.loss, y, oracle.goal)(z)

    def _order(self, draws: Draws, step: Tensor, shape: tuple[int, int, int]) -> Tensor:
        """Order of the directions, int64 [n, channels height width]."""
        channels, height, width = shape
        key = draws.uniform((math.prod(shape),), step, "order").double()
        frequency = torch.maximum(
            torch.arange(height, device=key.device)[:, None] / height,
            torch.arange(width, device=key.device)[None] / width,
        )
        frame = ((frequency - self.low) / (self.low / 4)).floor().clamp(min=-1).flatten().repeat(channels)
        rounds = torch.tensor([basis == "dct" for basis in ROUNDS[self.basis]], device=key.device)
        smooth = rounds[step // key.shape[1] % len(rounds)]
        key = key + frame * smooth[:, None]
        return key.argsort(dim=1, stable=True)
