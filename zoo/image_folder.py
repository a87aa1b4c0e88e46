"""A folder of images, one sub-folder a class."""

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
        folder: holds `train` and `test`; the folder named by SIEGEBENCH_DATA when left out.
        size: every image is brought to a square of this size; None takes images that have one size already.
        fit: `crop` scales the shorter edge and takes the centre, `stretch` scales both edges.
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
        # a class without test images keeps its number: names are taken from all splits
        classes = sorted({c.name for s in ("train", "test", split) for c in _folders(folder / s)})
        if not classes:
            raise DataError(f"{folder / split}: no sub-folders; expected one for each class")
        files = [
            (file, classes.index(c.name))
            for c in _folders(folder / split)
            for file in sorted(c.rglob("*"))
            if file.suffix.lower() in SUFFIXES
        ]
        if not files:
            raise DataError(f"{folder / split}: holds no images")

        def blobs(rows: Sequence[int]) -> Blobs:
            return ((str(files[i][0]), files[i][0].read_bytes()) for i in rows)

        return ImageSet(
            Rows(Encoded(len(files), blobs, str(folder / split), self.size, self.fit)),
            torch.tensor([label for _, label in files]), torch.arange(len(files)), len(classes),
            f"{folder.name} {split}",
        )  # fmt: skip


def _folders(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.is_dir()) if folder.is_dir() else []
