"""The published original data sets, through torchvision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from siegebench.data import ImageSet
from siegebench.errors import DataError
from siegebench.rows import Rows
from siegebench.types import Count, DataSource

from ._files import cache_folder
from ._images import Blobs, Encoded

CLASSES = {"CIFAR10": 10, "CIFAR100": 100, "GTSRB": 43}


@dataclass(frozen=True, kw_only=True)
class Torchvision(DataSource):
    """CIFAR-10, CIFAR-100 (fine labels) or GTSRB in torchvision's layout on disk. Nothing is random.

    The CIFAR files are pickles; torchvision compares their md5 with the published one before it opens them. For GTSRB,
    torchvision's selection of the training set is used (26,640 images), grouped by track; images are stretched to a
    square.

    Attributes:
        dataset: name of the data set.
        folder: torchvision's `root`; by default a folder below the cache folder.
        download: fetch the files when they are missing.
        size: of GTSRB images; the CIFAR sets have 32x32 pixels.
    """

    local: ClassVar[tuple[str, ...]] = ("folder", "download")

    dataset: Literal["CIFAR10", "CIFAR100", "GTSRB"]
    folder: str | None = None
    download: bool = False
    size: Count = 32

    def load(self, split: str) -> ImageSet:
        return self.scan(split).in_memory()

    def scan(self, split: str) -> ImageSet:
        name = f"{self.dataset} {split}"
        if split not in ("train", "test"):
            raise DataError(f"{self.dataset} has the splits train and test, not {split!r}")
        found = self._open(split)
        groups = None
        if self.dataset == "GTSRB":
            files, numbers = zip(*found._samples, strict=True)  # file names: `found[i]` does not give the track
            if split == "train":  # torchvision numbers the folders it finds; the classes are their names
                numbers, groups = tuple(int(Path(file).parent.name) for file in files), _tracks(files)

            def blobs(rows: Sequence[int]) -> Blobs:
                return ((str(files[i]), Path(files[i]).read_bytes()) for i in rows)

            images = Rows(Encoded(len(files), blobs, name, self.size, "stretch"))
            labels = torch.tensor(numbers)
        else:
            images = Rows(torch.from_numpy(found.data).permute(0, 3, 1, 2).contiguous())
            labels = torch.tensor(found.targets)
        return ImageSet(images, labels.long(), torch.arange(len(images)), CLASSES[self.dataset], name, groups)

    def _open(self, split: str) -> Any:
        from torchvision import datasets

        root = Path(self.folder).expanduser() if self.folder else cache_folder() / "torchvision"
        which = {"split": split} if self.dataset == "GTSRB" else {"train": split == "train"}
        try:
            return getattr(datasets, self.dataset)(str(root), download=self.download, **which)
        except (RuntimeError, OSError) as error:  # torchvision raises these for missing or damaged files; no network
            hint = "the download failed" if self.download else "set `download: true` to fetch it"
            raise DataError(
                f"{self.dataset} {split}: not found or damaged in {root} ({str(error).splitlines()[0][:120]}); {hint}, "
                "or name the folder of torchvision's files with `folder: FOLDER`"
            ) from None


def _tracks(files: tuple[str, ...]) -> Tensor:
    """`.../00012/00037_00028.ppm` is frame 28 of track 37 of class 12."""
    tracks = [f"{Path(file).parent.name}/{Path(file).stem.rsplit('_', 1)[0]}" for file in files]
    return torch.from_numpy(np.unique(tracks, return_inverse=True)[1].astype(np.int64))
