"""Saccades: films of events, made by moving the pictures of another data set."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench.data import EVENTS, ImageSet
from siegebench.errors import DataError
from siegebench.types import Count, DataSource, Share

AT_ONCE = 512  # pictures


@dataclass(frozen=True, kw_only=True)
class Saccades(DataSource):
    """Films of events [N, 1, 2 T H, W] of 0 and 1: frame after frame, pixels that became brighter, then darker ones.

    Every picture is shifted along a triangle, as the pictures of N-MNIST and CIFAR10-DVS were moved before a camera.
    Where the grey level of a pixel differs by more than the threshold from that of the frame before, there is an event.
    These are no recordings of an event camera: they have no noise, no time stamps and no latency. Nothing is random.

    Attributes:
        set: the data set; its images must be of the kind image.
        frames: T.
        size: pictures are brought to this height and width by averaging; None keeps theirs.
        threshold: least difference of grey levels in [0, 1] that is an event.
        reach: half of the longest side of the triangle, in pixels.
    """

    set: DataSource
    frames: Count = 6
    size: Count | None = 16
    threshold: Share = 0.15
    reach: Count = 2

    def load(self, split: str) -> ImageSet:
        whole = self.set.load(split)
        if whole.kind.name != "image":
            raise DataError(f"saccades: moves pictures, {whole.name} is {whole.kind.name}")
        parts = [self.film(whole.pixels(at)) for at in torch.arange(len(whole)).split(AT_ONCE)]
        return replace(whole, source=torch.cat(parts), name=f"{whole.name}/saccades", kind=EVENTS)

    def known_splits(self) -> tuple[str, ...]:
        return self.set.known_splits()

    def film(self, x: Tensor) -> Tensor:
        """Images [n, C, H, W] to strips uint8 [n, 1, 2 T H, W]."""
        grey = x.mean(dim=1, keepdim=True)
        grey = grey if self.size is None else F.adaptive_avg_pool2d(grey, self.size)
        height, width = grey.shape[2:]
        padded = F.pad(grey, (0, 2 * self.reach, 0, self.reach), mode="replicate")
        views = [padded[:, 0, r : r + height, c : c + width] for r, c in self.path()]
        change = torch.stack([after - before for before, after in pairwise(views)], dim=1)
        events = torch.stack([change > self.threshold, change < -self.threshold], dim=2)  # [n, T, 2, H, W]
        return events.flatten(1, 3)[:, None].to(torch.uint8)

    def path(self) -> list[tuple[int, int]]:
        """The T + 1 shifts (rows, columns), around the triangle from the corner back to it."""
        corners = torch.tensor([[0, 0], [self.reach, self.reach], [0, 2 * self.reach], [0, 0]]).double()
        at = torch.arange(self.frames + 1).double() * 3 / self.frames
        side = at.floor().clamp(max=2).long()
        points = corners[side] + (at - side)[:, None] * (corners[side + 1] - corners[side])
        return [(int(r), int(c)) for r, c in points.round().tolist()]
