from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from siegebench.data import IMAGE, ImageSet, Kind
from siegebench.draws import Draws
from siegebench.errors import DataError
from siegebench.types import Count, DataSource

CLASSES = 4
WAVE = Kind("wave", torch.float32, channels=3, low=0.0, high=1.0)


def bars(split: str, height: int, width: int) -> tuple[Tensor, Tensor]:
    """(noise with a bright bar, [n, 3, height, width] in [0, 1]; the class that says where the bar is)"""
    if split not in ("train", "test"):
        raise DataError(f"planted has the splits train and test, not {split!r}")
    labels = torch.arange(240 if split == "train" else 60) % CLASSES
    x = 0.5 * Draws(7 + len(split), torch.arange(len(labels))).uniform((3, height, width))
    column = torch.arange(width) * CLASSES // width
    return x + 0.4 * (column == labels[:, None])[:, None, None, :], labels


@dataclass(frozen=True, kw_only=True)
class Planted(DataSource):
    """Images that need not be square."""

    height: Count = 24
    width: Count = 40

    kind = IMAGE

    def load(self, split: str) -> ImageSet:
        x, labels = bars(split, self.height, self.width)
        ids = torch.arange(len(x))
        return ImageSet(self.kind.store(x), labels, ids, CLASSES, f"planted {split}", kind=self.kind)


@dataclass(frozen=True, kw_only=True)
class Waves(Planted):
    """The same numbers as another kind of data: stored as they are seen, on no grid."""

    kind = WAVE
