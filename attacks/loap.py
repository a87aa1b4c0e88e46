"""LOAP: one square patch per image, its content and its position optimised together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from siegebench import ops
from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from siegebench.oracle import Oracle
from siegebench.search import Best
from siegebench.threat import Norm, ThreatModel
from siegebench.types import Attack, Count, Positive

Offset = Annotated[int, Field(ge=0, strict=True)]
MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))  # up, down, left, right


def largest_square(fraction: float, height: int, width: int) -> int:
    """Side of the largest square that covers at most this fraction of an image and fits into it."""
    return min(math.isqrt(math.floor(fraction * height * width + 1e-6)), height, width)


def cut(image: Tensor, place: Tensor, side: int) -> Tensor:
    """The squares [n, C, side, side] of images [n, C, H, W] at positions [n, 2], (row, column) of the corner."""
    return image.flatten(2).gather(2, _pixels(image, place, side)).view(*image.shape[:2], side, side)


def paste(x: Tensor, patch: Tensor, place: Tensor) -> Tensor:
    """The images with the patches pasted at their positions."""
    return x.flatten(2).scatter(2, _pixels(x, place, patch.shape[-1]), patch.flatten(2)).view_as(x)


def _pixels(image: Tensor, place: Tensor, side: int) -> Tensor:
    along = torch.arange(side, device=image.device)
    row, column = place[:, 0, None] + along, place[:, 1, None] + along
    index = (row[:, :, None] * image.shape[3] + column[:, None, :]).flatten(1)
    return index[:, None].expand(-1, image.shape[1], -1)


@dataclass(frozen=True, kw_only=True)
class LOAP(Attack):
    """P <- clip(P + step sign(grad loss)); after each step the square moves if that raises the loss.

    Rao, Stutz, Schiele, "Adversarial training against location-optimized adversarial patches", 2020, arXiv 2005.02313.
    The patch is the largest square that covers at most eps of the pixels, in any colours, with one content and one
    position per image.

    Random: content and position at the start of each attempt, and the direction tried by `random_search`. Cost per
    sample that is never misclassified: steps + 1 forward and steps backward passes per attempt. A search adds 5 forward
    passes per step (`full_search`) or 2 (`random_search`); `greedy` adds one forward and one backward pass in all.

    Differs from the paper: a sample stops once it is misclassified. The loss of the new content at other positions is
    compared with its loss at the current position (the authors' code compares with the loss before the step). The new
    content moves along with the square (in their code it is lost). Every position up to the last row and column is
    reachable, and the last step is evaluated too. One attempt instead of 30. `greedy` is our own: without a search, the
    gradient on the clean image selects the position where a square could raise the loss most to first order. Each
    further attempt takes the best position that overlaps the earlier ones least.

    Attributes:
        location: `fixed` at `place`, `random`, `random_search` (one direction per step), `full_search` (all four), or
            `greedy`.
        steps: gradient steps per attempt.
        step: step size in each channel.
        attempts: runs from new contents and positions, for samples that are still correctly classified.
        stride: pixels that a square moves per step.
        place: row and column of the corner for `fixed`; moved towards the origin if the square does not fit.
        forbidden: row, column, height, width of a box that squares must not overlap; (11, 11, 10, 10) in the paper.
        loss: what is maximised, cross-entropy or margin of the logits.
        early_stop: stop a sample once it is misclassified. Without it every attempt takes all its steps, and the
            misclassified point of highest loss is returned: for randomised models, where a single misclassified forward
            pass is not a success.
    """

    aims: ClassVar[bool] = True
    norms: ClassVar[tuple[Norm, ...]] = ("l0",)

    location: Literal["fixed", "random", "random_search", "full_search", "greedy"] = "full_search"
    steps: Count = 100
    step: Positive = 0.05
    attempts: Count = 1
    stride: Count = 2
    place: tuple[Offset, Offset] = (3, 3)
    forbidden: tuple[Offset, Offset, Count, Count] | None = None
    loss: Literal["ce", "margin"] = "ce"
    early_stop: bool = True

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
        best = Best(x)
        side = largest_square(threat.eps, *x.shape[2:])
        if side == 0 or not len(x):
            return best.point
        free = self._free(side, x)
        promise = self._promise(oracle, x, y, side, free) if self.location == "greedy" else None
        for attempt in range(self.attempts):
            live, streams = best.left(), draws.child("loap", attempt)
            if not len(live):
                break
            if promise is None:
                place = self._start(free, streams[live])
            else:
                place, promise[live] = _most_promising(promise[live], side)
            patch = streams[live].uniform((x.shape[1], side, side), purpose="patch").to(x.dtype)
            self._climb(oracle, x, y, patch, place, free, streams, best)
        return best.point

    def _climb(
        self, oracle: Oracle, x: Tensor, y: Tensor, patch: Tensor, place: Tensor, free: Tensor, draws: Draws, best: Best
    ) -> None:
        """One attempt on the samples that are still correctly classified, from given patches and positions."""
        live, side = best.left(), patch.shape[-1]
        searches = self.location in ("random_search", "full_search")
        for t in range(self.steps + 1):
            x_t, loss = paste(x[live], patch, place), ops.aimed(self.loss, y[live], oracle[live].goal)
            if t < self.steps:
                g, z, value = oracle[live].gradient(x_t, loss)
            else:  # the last iterate needs no gradient
                z = oracle[live].logits(x_t)
                value = loss(z)
            broken = ops.hit(z.argmax(dim=1), y[live], oracle[live].goal)
            best.keep(live, x_t, value, broken)
            if t == self.steps:
                break
            slope = cut(g, place, side)
            leaving = broken & self.early_stop
            if not searches:  # with a search, another position may have a gradient
                leaving = leaving | oracle[live].stuck(slope)
            rest = (~leaving).nonzero().squeeze(1)
            if not len(rest):
                break
            live, place = live[rest], place[rest]
            patch = (patch[rest] + self.step * slope[rest].sign()).clamp(0, 1)
            if searches:
                place = self._move(oracle[live], x[live], y[live], patch, place, free, draws[live], t)

    def _move(
        self, oracle: Oracle, x: Tensor, y: Tensor, patch: Tensor, place: Tensor, free: Tensor, draws: Draws, t: int
    ) -> Tensor:
        """The best position for the current content: the current position or an allowed neighbour."""
        moves = self.stride * torch.tensor(MOVES, device=x.device)
        if self.location == "random_search":
            moves = moves[draws.integers(len(MOVES), (1,), t, "direction")]
        else:
            moves = moves.expand(len(x), -1, -1)
        stay, there = place[:, None], place[:, None] + moves
        inside = there.clamp(min=0).minimum(torch.tensor(free.shape, device=x.device) - 1)
        allowed = (inside == there).all(dim=2) & free[inside[..., 0], inside[..., 1]]
        tried = torch.cat([stay, torch.where(allowed[..., None], there, stay)], dim=1)
        k = tried.shape[1]
        images = paste(x.repeat_interleave(k, 0), patch.repeat_interleave(k, 0), tried.flatten(0, 1))
        view = oracle.repeat(k)
        value = ops.aimed(self.loss, y.repeat_interleave(k), view.goal)(view.logits(images)).view(-1, k)
        return tried[torch.arange(len(x), device=x.device), value.argmax(dim=1)]  # on ties the square stays

    def _free(self, side: int, x: Tensor) -> Tensor:
        """Allowed corners of a square, bool [H - side + 1, W - side + 1]."""
        rows, columns = (torch.arange(d - side + 1, device=x.device) for d in x.shape[2:])
        if self.forbidden is None:
            return torch.ones(len(rows), len(columns), dtype=torch.bool, device=x.device)
        top, first, height, width = self.forbidden
        above_or_below = (rows + side <= top) | (rows >= top + height)
        beside = (columns + side <= first) | (columns >= first + width)
        free = above_or_below[:, None] | beside[None, :]
        if not bool(free.any()):
            raise NotApplicable(f"no square of {side} x {side} pixels fits beside the forbidden box {self.forbidden}")
        return free

    def _start(self, free: Tensor, draws: Draws) -> Tensor:
        """The initial position of each square, int64 [n, 2]."""
        if self.location != "fixed":
            corners = free.nonzero()
            return corners[draws.integers(len(corners), purpose="place")]
        place = [min(at, most - 1) for at, most in zip(self.place, free.shape, strict=True)]
        if not bool(free[place[0], place[1]]):
            raise NotApplicable(f"a square at {tuple(place)} touches the forbidden box {self.forbidden}")
        return torch.tensor(place, device=free.device).expand(len(draws), 2)

    def _promise(self, oracle: Oracle, x: Tensor, y: Tensor, side: int, free: Tensor) -> Tensor:
        """First-order estimate of how much a square at each position could raise the loss; -inf where not allowed."""
        g, _, _ = oracle.gradient(x, ops.aimed(self.loss, y, oracle.goal))
        rise = torch.maximum(g * (1 - x), -g * x).sum(dim=1, keepdim=True)
        total = F.avg_pool2d(rise, side, stride=1, divisor_override=1).squeeze(1)
        return total.masked_fill(~free, -torch.inf)


def _most_promising(promise: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """The positions of highest promise, int64 [n, 2], and the promise with overlapping positions put last."""
    width = promise.shape[2]
    at = promise.flatten(1).argmax(dim=1)
    place = torch.stack([at.div(width, rounding_mode="floor"), at % width], dim=1)
    row, column = (torch.arange(d, device=at.device) for d in promise.shape[1:])
    near = (row - place[:, :1]).abs()[:, :, None].maximum((column - place[:, 1:]).abs()[:, None, :]) < side
    finite = promise.masked_fill(promise.isinf(), 0)
    return place, promise - near * ops.over(finite.flatten(1).abs().amax(dim=1) + 1, promise)
