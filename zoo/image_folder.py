"""A folder of images with one sub-folder per class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from siegebench.data import ImageSet
from siegebench.errors import DataError
from siegebench.rows import Rows
from siegebench.types import Count, DataSource

from ._files import DATA_VARIABLE, data_folder
from ._images import Blobs, Encoded, Fit

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".webp", ".tif", ".tiff"}


@dataclass(frozen=True, kw_only=True)
class ImageFolder(DataSource):
    """FOLDER/SPLIT/CLASS/IMAGE. Classes are numbered by the sorted names of the sub-folders; nothing is random.

    Attributes:
        folder: contains `train` and `test`; by default the folder named by SIEGEBENCH_DATA.
        size: every image is resized to a square of this size; None requires images of one size.
        fit: `crop` scales the shorter side and takes the centre, `stretch` scales both sides.
    """

    local: ClassVar[tuple[str, ...]] = ("folder",)

    folder: str | None = None
    size: Count | None = None
    fit: Fit = "crop"

    def load(self, split: str) -> ImageSet:
        return self.scan(split).in_memory()

    def scan(self, split: str) -> ImageSet:
        folder = Path(self.folder).expanduser() if self.folder else data_folder()
        if folder is None or not (folder / split).is_dir():
            where = f"there is no folder {folder / split}" if folder else "no folder to look in"
            raise DataError(
                f"image_folder {split}: {where}; expected FOLDER/{split}/CLASS/IMAGE. Set `folder: FOLDER` in the "
                f"suite or {DATA_VARIABLE}=FOLDER in the environment"
            )
        # names are collected over all splits, so that a class without test images keeps its number
        classes = sorted({c.name for s in ("train", "test", split) for c in _folders(folder / s)})
        if not classes:
            raise DataError(f"{folder / split}: no sub-folders; expected one per class")
        files = [
            (file, classes.index(c.name))
            for c in _folders(folder / split)
            for file in sorted(c.rglob("*"))
            if file.suffix.lower() in SUFFIXES
        ]
        if not files:
            raise DataError(f"{folder / split}: contains no images")

        def blobs(rows: Sequence[int]) -> Blobs:
            return ((str(files[i][0]), files[i][0].read_bytes()) for i in rows)

        return ImageSet(
            Rows(Encoded(len(files), blobs, str(folder / split), self.size, self.fit)),
            torch.tensor([label for _, label in files]), torch.arange(len(files)), len(classes),
            f"{folder.name} {split}",
        )  # fmt: skip


def _folders(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.is_dir()) if folder.is_dir() else []
