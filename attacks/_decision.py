"""Shared by label-only attacks: the query budget of a batch, a starting point, and the search for the boundary."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from siegebench import ops
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.search import Budget, keep
from siegebench.threat import ThreatModel

IMAGES = 2**24  # largest number of pixels in one forward pass of probes
NUMBERS = 2**20  # random numbers per sample that are kept in memory
COARSE = 0.1  # tolerance of the searches along starting directions, as a fraction of the distance
DIRECTIONS = 100  # largest number of starting directions chosen from the granted queries
MARGIN = 2e-4  # how far results are moved across the boundary, as a fraction of their distance
PROBES = 32  # largest number of probes per sample that are drawn together


class Queries(Budget):
    """Counts the queries of each sample and keeps its nearest misclassified image.

    Attributes:
        nearest: the nearest misclassified image that was queried; the clean image if there is none.
        distance: size of the perturbation of `nearest`, [n]; infinite if there is none.
    """

    def __init__(
        self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, most: int, stop_at_eps: bool = False
    ) -> None:
        super().__init__(oracle, y, most)
        self.x, self.y, self.threat = x, y, threat
        self.nearest, self.distance = x.clone(), torch.full_like(x[:, 0, 0, 0], torch.inf)
        self.stop_at_eps = stop_at_eps

    def open(self, rows: Tensor, least: int = 1) -> Tensor:
        """Whether samples are still attacked, bool [m]: queries are left and `stop_at_eps` has not stopped them."""
        going = super().open(rows, least)
        return going & (self.distance[rows] > self.threat.eps) if self.stop_at_eps else going

    def wrong(self, rows: Tensor, points: Tensor) -> Tensor:
        """Whether each image is misclassified, bool [m], one query each. False, without a query, for rows not open."""
        going = self.open(rows)
        if bool(going.all()):
            return self._ask(rows, points) if len(rows) else going
        hit = torch.zeros_like(going)
        at = going.nonzero().squeeze(1)
        if len(at):
            hit[at] = self._ask(rows[at], points[at])
        return hit

    def _ask(self, rows: Tensor, points: Tensor) -> Tensor:
        hit = self.oracle[rows].labels(points) != self.y[rows]
        self.left[rows] -= 1
        old, far = self.distance[rows], self.threat.size(points, self.x[rows])
        better = hit & (far < old)
        self.distance[rows] = torch.where(better, far, old)
        self.nearest[rows] = torch.where(ops.over(better, points), points, self.nearest[rows])
        return hit

    def votes(self, rows: Tensor, points: Tensor, most: Tensor) -> Tensor:
        """+1 for misclassified, -1 for correctly classified, 0 for not queried, [m, k]; one query each.

        Args:
            rows: [m], indices of samples that are open.
            points: [m, k, 3, H, W].
            most: int64 [m], how many of its k images each row queries (the first ones).
        """
        k = points.shape[1]
        most = torch.minimum(most, self.left[rows]).clamp(min=0, max=k)
        out = torch.zeros_like(points[:, :, 0, 0, 0])
        for count in most.unique().tolist():  # a single value, except for the last probes of a budget
            same = (most == count).nonzero().squeeze(1)
            at = rows[same]
            width = max(1, IMAGES // max(1, len(at) * points[0, 0].numel()))
            for first in range(0, count, width):
                part = points[same, first : min(first + width, count)]
                label = self.oracle[at].repeat(part.shape[1]).labels(part.flatten(0, 1)).view(len(at), -1)
                out[same, first : first + part.shape[1]] = torch.where(label != self.y[at][:, None], 1.0, -1.0).to(out)
        self.left[rows] -= most
        return out

    def result(self) -> Tensor:
        """The nearest misclassified images; the clean image if there is none (with `stop_at_eps`, none within eps).

        They are moved across the boundary by 0.02 % of their distance (not out of eps), because in another batch the
        logits are rounded differently, and an image next to the boundary may then be classified correctly.
        """
        inside = self.distance <= self.threat.eps
        room = torch.where(inside, self.threat.eps / self.distance.clamp(min=torch.finfo(self.x.dtype).tiny), torch.inf)
        further = ops.over((1 + MARGIN * torch.ones_like(room)).minimum(room), self.x)
        moved = (self.x + further * (self.nearest - self.x)).clamp(0, 1)
        return torch.where(ops.over(inside, self.x), moved, self.x) if self.stop_at_eps else moved


def probes(draws: Draws, shape: tuple[int, ...], most: int, kind: str = "normal") -> Iterator[tuple[int, Tensor]]:
    """(first, random images [n, k, *shape]): `most` images per sample, in chunks that fit into memory.

    The images do not depend on `most`.

    Args:
        kind: `normal`, or `uniform` in [-1, 1).
    """
    size = max(1, min(PROBES, NUMBERS // math.prod(shape)))
    for first in range(0, most, size):
        # always draw whole chunks: the numbers depend on how many are drawn together
        u = draws.normal((size, *shape), first) if kind == "normal" else 2 * draws.uniform((size, *shape), first) - 1
        yield first, u[:, : most - first]


def bisect(
    ask: Queries,
    rows: Tensor,
    place: Callable[[Tensor, Tensor], Tensor],
    high: Tensor,
    tolerance: Tensor,
    relative: float = 0.0,
    low: float = 0.0,
) -> Tensor:
    """Bisect [low * high, high] for the smallest number, up to a tolerance, at which the image is misclassified.

    Args:
        place: (indices into `rows`, numbers) to the images at these numbers.
        high: [m], numbers at which the image is known to be misclassified.
        tolerance: [m].
        relative: tolerance as a fraction of the number found; the larger tolerance ends a search.
        low: fraction of `high` at which the image is known to be classified correctly.
    """
    below, high = low * high, high.clone()
    while True:
        middle = (below + high) / 2
        # rounding may end a search before it reaches its tolerance
        wide = (high - below > torch.maximum(tolerance, relative * high)) & (middle > below) & (middle < high)
        wide &= ask.open(rows)
        live = wide.nonzero().squeeze(1)
        if not len(live):
            return high
        middle = middle[live]
        hit = ask.wrong(rows[live], place(live, middle))
        high[live] = torch.where(hit, middle, high[live])
        below[live] = torch.where(hit, below[live], middle)


def to_boundary(
    ask: Queries, rows: Tensor, far: Tensor, tolerance: float, relative: float = 0.0, low: float = 0.0
) -> Tensor:
    """Misclassified images next to the boundary, on the path from the clean images to `far`.

    In L2 the path is a line. In Linf the perturbation of `far` is clipped to a ball of growing radius.

    Args:
        far: [m, 3, H, W], misclassified.
        tolerance: of the search, as a fraction of the path; not below the resolution of the pixels' dtype.
        relative: tolerance as a fraction of the distance found; the larger tolerance ends the search.
        low: fraction of the path that is known to be classified correctly.
    """
    if not len(rows):
        return far
    x, norm = ask.x[rows], ask.threat.norm
    delta = far - x
    length = ops.size(delta, norm)

    def place(at: Tensor, fraction: Tensor) -> Tensor:
        return (x[at] + ops.project_ball(delta[at], norm, fraction * length[at])).clamp(0, 1)

    finest = torch.finfo(x.dtype).eps / length.clamp(min=torch.finfo(x.dtype).tiny)
    fraction = bisect(ask, rows, place, torch.ones_like(length), finest.clamp(min=tolerance), relative, low)
    every = torch.arange(len(rows), device=rows.device)
    return torch.where(ops.over(fraction < 1, far), place(every, fraction), far)


def noise(like: Tensor, draws: Draws, number: int) -> Tensor:
    """U[0, 1) images; with `number` the cells of one colour grow from 1 to 2, 4, ... pixels up to the whole image."""
    channels, height, width = like.shape[1:]
    side = 2 ** (number % (max(height, width).bit_length()))
    u = draws.uniform((channels, -(-height // side), -(-width // side)), number, "start").to(like)
    return u.repeat_interleave(side, 2).repeat_interleave(side, 3)[:, :, :height, :width]


def start(
    ask: Queries, draws: Draws, tolerance: float, directions: int | None = 1, share: int = 2
) -> tuple[Tensor, Tensor]:
    """(rows, points): the samples still attacked, and misclassified images next to the boundary towards uniform noise.

    Noise is drawn for each sample until it is misclassified: first per pixel, then, if the noise gets the label of the
    image, in larger and larger cells. Samples without misclassified noise spend their budget. Further noise images cost
    one query each, at 90 % of the smallest distance known so far. If one is misclassified there, its boundary is
    searched, first up to 10 % of its distance. Only the search along the nearest one is completed.

    Args:
        tolerance: of the search for the boundary, as a fraction of the path to the noise.
        directions: number of noise images tried; None for one in `share` of the granted queries, at most 100.
    """
    rows = ask.rows()
    points, number = ask.x[rows], 0
    ready = torch.zeros_like(rows, dtype=torch.bool)
    while True:
        live = (~ready & ask.open(rows)).nonzero().squeeze(1)
        if not len(live):
            break
        trial = noise(points[live], draws[rows[live]], number)
        hit = ask.wrong(rows[live], trial)
        points[live] = torch.where(ops.over(hit, trial), trial, points[live])
        ready[live] = hit
        number += 1
    rows, points = rows[ready], points[ready]
    points = to_boundary(ask, rows, points, tolerance, COARSE)
    most = ask.granted // share if directions is None else torch.full_like(ask.granted, directions)
    for number in range(1, min(int(most.max()), DIRECTIONS if directions is None else directions)):
        live = (ask.open(rows) & (most[rows] > number)).nonzero().squeeze(1)
        if not len(live):
            break
        at = rows[live]
        x, norm = ask.x[at], ask.threat.norm
        trial = noise(x, draws[at].child("directions"), number) - x
        trial = (x + ops.project_ball(trial, norm, (1 - COARSE) * ops.size(points[live] - x, norm))).clamp(0, 1)
        hit = ask.wrong(at, trial)
        points[live[hit]] = to_boundary(ask, at[hit], trial[hit], tolerance, COARSE)
    points = to_boundary(ask, rows, points, tolerance, low=1 - COARSE)
    rows, points = keep(ask.open(rows), rows, points)
    return rows, points
