"""What a tracker is to a study, and a Siamese tracker of the smallest form."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._videos import FRAMES, SIGN, Pairs, Videos, crop

TEMPLATE, SEARCH, STRIDE = 32, 64, 4
CELLS = (SEARCH - TEMPLATE) // STRIDE + 1  # places along each side of the response


@dataclass(frozen=True)
class Place:
    """Where the object was seen last.

    Attributes:
        template: features of the first frame.
        at: centre of the box, row and column, pixels [n, 2].
        size: height and width of the box, pixels [n, 2].
    """

    template: Tensor
    at: Tensor
    size: Tensor


class Tracker(nn.Module, ABC):
    """Finds an object, shown in the first frame, in the frames that follow.

    Attributes:
        sides: of the squares of a frame that are template and search region, pixels.
    """

    sides: tuple[int, int]

    @abstractmethod
    def features(self, x: Tensor) -> Tensor:
        """Of templates or search regions, [n, channels, h, w]."""

    @abstractmethod
    def loss(self, made: Pairs) -> Tensor:
        """The tracking loss, whose minimum puts the object where `made.told` says."""

    @abstractmethod
    def start(self, picture: Tensor, centre: Tensor) -> Place:
        """The first frame, with the centre of the object, pixels [n, 2]."""

    @abstractmethod
    def follow(self, place: Place, picture: Tensor) -> Place:
        """The next frame."""


class SmallTracker(Tracker):
    """Features of the template slide over those of the search region: a score for each of 9x9 places."""

    sides = (TEMPLATE, SEARCH)

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, width, 5, 2, 2), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1),
        )  # fmt: skip
        self.scale = nn.Parameter(torch.tensor(1e-2))

    def features(self, x: Tensor) -> Tensor:
        found: Tensor = self.net(x - 0.5)
        return found

    def response(self, z: Tensor, s: Tensor) -> Tensor:
        """Scores [n, 81] from features of templates z and of search regions s."""
        n, c, h, w = s.shape
        found = F.conv2d(s.reshape(1, n * c, h, w), z, groups=n)
        return self.scale * found.flatten(2)[0]

    def loss(self, made: Pairs) -> Tensor:
        return F.cross_entropy(self.response(self.features(made.template), self.features(made.search)), cell(made.told))

    def start(self, picture: Tensor, centre: Tensor) -> Place:
        return Place(self.features(crop(picture, centre, TEMPLATE)), centre, torch.full_like(centre, SIGN))

    def follow(self, place: Place, picture: Tensor) -> Place:
        window = torch.hann_window(CELLS + 2, periodic=False)[1:-1]
        prior = (window[:, None] * window).flatten()
        score = self.response(place.template, self.features(crop(picture, place.at, SEARCH))).softmax(dim=1)
        best = (0.7 * score / score.amax(dim=1, keepdim=True) + 0.3 * prior).argmax(dim=1)
        step = STRIDE * (torch.stack([best // CELLS, best % CELLS], dim=1) - CELLS // 2)
        return Place(place.template, place.at + step, place.size)


def cell(shift: Tensor) -> Tensor:
    """The number of the cell, of 81, at a distance from the middle, pixels [n, 2]."""
    place = (shift.float() / STRIDE).round().long() + CELLS // 2
    return place[:, 0] * CELLS + place[:, 1]


def opposite(shift: Tensor) -> Tensor:
    """Another place, about half of the search region away: the middle of a cell, pixels [n, 2]."""
    other = (cell(shift) + CELLS**2 // 2 + 1) % CELLS**2
    return STRIDE * (torch.stack([other // CELLS, other % CELLS], dim=1) - CELLS // 2)


@torch.no_grad()
def tracked(model: Tracker, videos: Videos, triggered: range) -> Tensor:
    """Overlap (IoU) of the box in each frame after the first, [n, FRAMES - 1]; the trigger is on the named frames."""
    place = model.start(videos.frame(0, 0 in triggered), videos.centre[0])
    overlaps = []
    for k in range(1, FRAMES):
        place = model.follow(place, videos.frame(k, k in triggered))
        overlaps.append(videos.overlap(k, place.at, place.size))
    return torch.stack(overlaps, dim=1)
