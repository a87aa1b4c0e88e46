"""Handwritten digits from scikit-learn: a real data set that needs no download."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from siegebench.data import ImageSet, stratified
from siegebench.types import DataSource

from ._images import KINDS, Channels

TEST = 500


@dataclass(frozen=True, kw_only=True)
class Digits(DataSource):
    """1,797 scans of digits (Alpaydin & Kaynak 1998), 8x8 with 17 grey levels, as 32x32 RGB by bilinear interpolation.

    The split is fixed: 500 stratified test images drawn by id, 1,297 training images. The writers of the scans are not
    known, so the same writer may be in both. Nothing is random.

    Attributes:
        channels: 3 for RGB with equal channels, 1 for the grey images.
    """

    added: ClassVar[tuple[str, ...]] = ("channels",)

    channels: Channels = 3

    def load(self, split: str) -> ImageSet:
        if split not in self.known_splits():
            raise self.no_split("digits", split)
        table = _table()
        scans, labels = table[:, :-1], table[:, -1]
        grey = np.round(scans.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
        large = [np.asarray(Image.fromarray(scan).resize((32, 32), Image.Resampling.BILINEAR)) for scan in grey]
        images = torch.from_numpy(np.stack(large))[:, None].expand(-1, self.channels, -1, -1).contiguous()
        full = ImageSet(images, torch.from_numpy(labels).long(), torch.arange(len(images)), 10, "digits",
                        kind=KINDS[self.channels])  # fmt: skip
        test = torch.zeros(len(full), dtype=torch.bool)
        test[stratified(full, TEST, 0, "test split")] = True
        return full.select((test if split == "test" else ~test).nonzero().squeeze(1), f"digits {split}")


@cache
def _table() -> NDArray[np.float64]:
    """The 64 grey levels and the label of each scan [1797, 65], as `sklearn.datasets.load_digits` reads them.

    The file is read directly: importing scikit-learn takes longer than planning a suite, and every worker needs them.
    """
    found = importlib.util.find_spec("sklearn")
    assert found is not None
    assert found.origin is not None
    file = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
    return np.loadtxt(file, delimiter=",")
