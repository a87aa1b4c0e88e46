"""Handwritten digits from scikit-learn: a real data set that needs no download."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits

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
        scans, labels = load_digits(return_X_y=True)
        grey = np.round(scans.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
        large = [np.asarray(Image.fromarray(scan).resize((32, 32), Image.Resampling.BILINEAR)) for scan in grey]
        images = torch.from_numpy(np.stack(large))[:, None].expand(-1, self.channels, -1, -1).contiguous()
        full = ImageSet(images, torch.from_numpy(labels).long(), torch.arange(len(images)), 10, "digits",
                        kind=KINDS[self.channels])  # fmt: skip
        test = torch.zeros(len(full), dtype=torch.bool)
        test[stratified(full, TEST, 0, "test split")] = True
        return full.select((test if split == "test" else ~test).nonzero().squeeze(1), f"digits {split}")
