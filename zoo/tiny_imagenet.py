"""Tiny ImageNet in the layout of its archive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch

from siegebench.data import ImageSet
from siegebench.errors import DataError
from siegebench.rows import Rows
from siegebench.types import Count, DataSource

from ._files import DATA_VARIABLE, data_folder
from ._images import KINDS, Blobs, Channels, Encoded, Fit
from .image_folder import checked, pictures

ARCHIVE = "tiny-imagenet-200"


@dataclass(frozen=True, kw_only=True)
class TinyImageNet(DataSource):
    """200 classes, 100,000 training images and 10,000 validation images of 64x64 pixels. Nothing is random.

    FOLDER has `wnids.txt`, `train/WNID/images/*.JPEG` and `val/images/*.JPEG` with `val/val_annotations.txt`. Images in
    `val/WNID` are found too. The official test images have no labels, so `test` and `val` are both the validation set.

    Attributes:
        folder: the unpacked archive; by default `tiny-imagenet-200` in the folder named by SIEGEBENCH_DATA.
        order: the order of the labels. `wnids` is the order of `wnids.txt`; `sorted` sorts the names, as torchvision's
            and timm's image folders do. Use the one that your checkpoint was trained with.
        size, fit, channels: see image_folder.
    """

    local: ClassVar[tuple[str, ...]] = ("folder", "order")  # the labels are part of the digest

    folder: str | None = None
    order: Literal["wnids", "sorted"] = "wnids"
    size: Count | None = None
    fit: Fit = "crop"
    channels: Channels = 3

    def load(self, split: str) -> ImageSet:
        return self.scan(split).in_memory()

    def scan(self, split: str) -> ImageSet:
        if split not in self.known_splits():
            raise self.no_split("tiny_imagenet", split)
        folder = self._root()
        names = checked(_lines(folder / "wnids.txt"), str(folder / "wnids.txt"))
        names = tuple(sorted(names)) if self.order == "sorted" else names
        number = {name: label for label, name in enumerate(names)}
        part = folder / ("train" if split == "train" else "val")
        annotated = part / "val_annotations.txt"
        if split != "train" and annotated.is_file() and (part / "images").is_dir():
            pairs = sorted(tuple(line.split("\t")[:2]) for line in _lines(annotated))
            files = [(part / "images" / pair[0], pair[-1]) for pair in pairs]
        else:
            files = [(file, name) for name in sorted(names) for file in sorted(pictures(part / name))]
        if not files:
            raise DataError(f"{part}: contains no images; expected the layout of the archive {ARCHIVE}")
        if unknown := next((name for _, name in files if name not in number), None):
            raise DataError(f"{annotated}: the class {unknown!r} is not in {folder / 'wnids.txt'}")

        def blobs(rows: Sequence[int]) -> Blobs:
            return ((str(files[i][0]), _read(files[i][0])) for i in rows)

        return ImageSet(
            Rows(Encoded(len(files), blobs, str(part), self.size, self.fit, self.channels)),
            torch.tensor([number[name] for _, name in files]), torch.arange(len(files)), len(names),
            f"tiny_imagenet {split}", kind=KINDS[self.channels], classes=names,
        )  # fmt: skip

    def known_splits(self) -> tuple[str, ...]:
        return ("train", "test", "val")

    def _root(self) -> Path:
        base = data_folder()
        folder = Path(self.folder).expanduser() if self.folder else base / ARCHIVE if base else None
        if folder is None or not (folder / "wnids.txt").is_file():
            where = f"no {folder / 'wnids.txt'}" if folder else "no folder to look in"
            raise DataError(
                f"tiny_imagenet: {where}; unpack {ARCHIVE}.zip, and set `folder: FOLDER` in the suite, or "
                f"{DATA_VARIABLE} in the environment to the folder that contains {ARCHIVE}"
            )
        return folder


def _lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
