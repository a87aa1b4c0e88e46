"""Balanced: a data set whose training images are drawn equally often from each class."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.types import DataSource


@dataclass(frozen=True, kw_only=True)
class Balanced(DataSource):
    """The training images of smaller classes are repeated until each class has as many as the largest.

    Other splits stay as they are. Repeats get ids of their own, so that they are augmented differently, and belong to
    the group of their image, so that they are on its side of a split.

    Random: which images are repeated once more than others, from `seed`.

    Attributes:
        data: the data set.
        seed: of the choice.
    """

    data: DataSource
    seed: int = 0

    def load(self, split: str) -> ImageSet:
        return self._even(self.data.load(split), split)

    def scan(self, split: str) -> ImageSet:
        return self._even(self.data.scan(split), split)

    def known_splits(self) -> tuple[str, ...]:
        return self.data.known_splits()

    def _even(self, whole: ImageSet, split: str) -> ImageSet:
        if split != "train":
            return whole
        order = Draws(self.seed, whole.ids).order("balanced")
        members = [order[whole.labels[order] == c] for c in range(whole.num_classes)]
        most = max(map(len, members))
        index = torch.cat([m.repeat(-(-most // len(m)))[:most] for m in members if len(m)])
        again = torch.cat([torch.arange(most) // len(m) for m in members if len(m)])
        found = whole.select(index)
        groups = whole.ids[index] if whole.groups is None else found.groups
        return replace(found, ids=found.ids + again * (int(whole.ids.max()) + 1), groups=groups)
