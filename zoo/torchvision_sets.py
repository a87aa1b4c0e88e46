"""Published data sets in their original form, through torchvision."""

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
from ._images import KINDS, Blobs, Channels, Encoded, with_channels

CLASSES = {"CIFAR10": 10, "CIFAR100": 100, "GTSRB": 43, "MNIST": 10, "FashionMNIST": 10, "SVHN": 10, "STL10": 10}
BY_SPLIT = ("GTSRB", "SVHN", "STL10")  # torchvision's argument is `split`, that of the others is `train`


@dataclass(frozen=True, kw_only=True)
class Torchvision(DataSource):
    """A data set in torchvision's layout on disk. Nothing is random.

    - CIFAR-10 and CIFAR-100 (fine labels): 32x32. The files are pickles; torchvision compares their md5 with the
      published one before it opens them.
    - MNIST and FashionMNIST: 28x28, grey.
    - SVHN: the cropped digits, 32x32; label 0 is the digit 0. The split `extra` has the further training images.
    - STL10: 96x96, the labelled images. The unlabelled ones need not be there.
    - GTSRB: torchvision's selection of the training set (26,640 images), grouped by track; images are stretched to a
      square.

    Attributes:
        dataset: name of the data set.
        folder: torchvision's `root`; by default a folder below the cache folder.
        download: fetch the files when they are missing.
        size: of GTSRB images; the other sets have one size.
        channels: 3, or 1 for grey images; the cards of the grey sets set 1.
    """

    local: ClassVar[tuple[str, ...]] = ("folder", "download")
    added: ClassVar[tuple[str, ...]] = ("channels",)

    dataset: Literal["CIFAR10", "CIFAR100", "GTSRB", "MNIST", "FashionMNIST", "SVHN", "STL10"]
    folder: str | None = None
    download: bool = False
    size: Count = 32
    channels: Channels = 3

    def load(self, split: str) -> ImageSet:
        return self.scan(split).in_memory()

    def scan(self, split: str) -> ImageSet:
        name, count = f"{self.dataset} {split}", CLASSES[self.dataset]
        if split not in self.known_splits():
            raise self.no_split(self.dataset, split)
        found = self._open(split)
        groups = None
        if self.dataset == "GTSRB":
            files, numbers = zip(*found._samples, strict=True)  # file names: `found[i]` does not give the track
            if split == "train":  # torchvision numbers the folders it finds; the classes are their names
                numbers, groups = tuple(int(Path(file).parent.name) for file in files), _tracks(files)

            def blobs(rows: Sequence[int]) -> Blobs:
                return ((str(files[i]), Path(files[i]).read_bytes()) for i in rows)

            images = Rows(Encoded(len(files), blobs, name, self.size, "stretch", self.channels))
            labels = torch.tensor(numbers)
        else:
            images = Rows(with_channels(_pixels(found.data), self.channels))
            labels = torch.as_tensor(found.targets if hasattr(found, "targets") else found.labels)
        names = tuple(map(str, getattr(found, "classes", ()) or ()))
        return ImageSet(
            images, labels.long(), torch.arange(len(images)), count, name, groups, KINDS[self.channels],
            names if len(names) == count else None,
        )  # fmt: skip

    def known_splits(self) -> tuple[str, ...]:
        return ("train", "test", "extra") if self.dataset == "SVHN" else ("train", "test")

    def _open(self, split: str) -> Any:
        root = Path(self.folder).expanduser() if self.folder else cache_folder() / "torchvision"
        which = {"split": split} if self.dataset in BY_SPLIT else {"train": split == "train"}
        try:
            return _loader(self.dataset)(str(root), download=self.download, **which)
        # torchvision raises these for missing or damaged files, and without a network
        except (RuntimeError, OSError, ValueError, AssertionError) as error:
            said = (str(error).splitlines() or [type(error).__name__])[0][:120]
            hint = "the download failed" if self.download else "set `download: true` to fetch it"
            raise DataError(
                f"{self.dataset} {split}: not found or damaged in {root} ({said}); {hint}, "
                "or name the folder of torchvision's files with `folder: FOLDER`"
            ) from None


def _loader(dataset: str) -> Any:
    """The class of torchvision, for the labelled images."""
    from torchvision import datasets

    found = getattr(datasets, dataset)
    if dataset == "STL10":  # do not ask for the 2.6 GB of unlabelled images
        return type(dataset, (found,), {"train_list": found.train_list[:2]})
    return found


def _pixels(data: Any) -> Tensor:
    """uint8 [N, C, H, W] of torchvision's arrays: [N, H, W], [N, H, W, 3] or [N, 3, H, W]."""
    images = torch.from_numpy(np.ascontiguousarray(data))
    if images.dim() == 3:
        return images[:, None]
    return images if images.shape[1] == 3 else images.permute(0, 3, 1, 2).contiguous()


def _tracks(files: tuple[str, ...]) -> Tensor:
    """`.../00012/00037_00028.ppm` is frame 28 of track 37 of class 12."""
    tracks = [f"{Path(file).parent.name}/{Path(file).stem.rsplit('_', 1)[0]}" for file in files]
    return torch.from_numpy(np.unique(tracks, return_inverse=True)[1].astype(np.int64))
