"""A folder of images with one sub-folder per class."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch

from siegebench.data import ImageSet
from siegebench.errors import DataError, did_you_mean, shortened
from siegebench.rows import Rows
from siegebench.types import Count, DataSource

from ._files import DATA_VARIABLE, data_folder
from ._images import KINDS, Blobs, Channels, Encoded, Fit

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".webp", ".tif", ".tiff", ".gif"}
IGNORED = {"__MACOSX", "__pycache__", "@eaDir", "lost+found"}  # besides names that begin with a dot
NAMES = "classes.txt"


@dataclass(frozen=True, kw_only=True)
class ImageFolder(DataSource):
    """FOLDER/SPLIT/CLASS/IMAGE. Nothing is random.

    Any sub-folder of FOLDER is a split. Classes are the sub-folders with images, in natural order, as timm numbers them
    (`2` before `10`). A test split has the labels of the training split, also if it lacks some classes. Hidden files
    and folders are ignored (`.ipynb_checkpoints`, `__MACOSX`). `siegebench doctor --data` prints the labels.

    Attributes:
        folder: contains the splits; by default the folder named by SIEGEBENCH_DATA.
        size: every image is resized to a square of this size; None requires images of one size.
        fit: `crop` scales the shorter side and takes the centre, `stretch` scales both sides.
        channels: 3, or 1 for grey images.
        classes: names of the class folders in the order of their labels, or a text file with one name in each line (a
            path, or a file in FOLDER). By default `classes.txt` in FOLDER, if it exists. Not every class needs images;
            a folder that is not listed is refused.
        splits: other names of splits, such as `{test: val}` to evaluate FOLDER/val where a suite says test.
    """

    local: ClassVar[tuple[str, ...]] = ("folder", "classes", "splits")  # labels and images are part of the digest
    added: ClassVar[tuple[str, ...]] = ("channels",)

    folder: str | None = None
    size: Count | None = None
    fit: Fit = "crop"
    channels: Channels = 3
    classes: tuple[str, ...] | str | None = None
    splits: dict[str, str] = field(default_factory=dict)

    def load(self, split: str) -> ImageSet:
        return self.scan(split).in_memory()

    def scan(self, split: str) -> ImageSet:
        folder, images = self._root(split), self._images(split)
        names, said = self._classes(split)
        number = {name: label for label, name in enumerate(names)}
        found = class_folders(images)
        if strange := [c.name for c in found if c.name not in number]:
            raise DataError(
                f"{images}: the class folder {strange[0]!r} is not {said}. {did_you_mean(strange[0], names)} "
                f"Remove it, or list all classes with `classes: [...]` or in {folder / NAMES}"
            )
        files = [(file, number[c.name]) for c in found for file in sorted(pictures(c))]
        if not files:
            raise DataError(f"{images}: contains no images; expected {images}/CLASS/IMAGE")

        def blobs(rows: Sequence[int]) -> Blobs:
            return ((str(files[i][0]), files[i][0].read_bytes()) for i in rows)

        return ImageSet(
            Rows(Encoded(len(files), blobs, str(images), self.size, self.fit, self.channels)),
            torch.tensor([label for _, label in files]), torch.arange(len(files)), len(names), f"{folder.name} {split}",
            kind=KINDS[self.channels], classes=names,
        )  # fmt: skip

    def known_splits(self) -> tuple[str, ...]:
        folder = self._root()
        there = [f.name for f in visible(folder) if class_folders(f)]
        others = [split for split, name in self.splits.items() if name in there]
        return tuple(dict.fromkeys([*others, *(name for name in there if name not in self.splits.values())]))

    @property
    def _called(self) -> str:
        return getattr(self, "_name", "image_folder")

    def _root(self, split: str = "") -> Path:
        folder = Path(self.folder).expanduser() if self.folder else data_folder()
        if folder is None or not folder.is_dir():
            where = f"there is no folder {folder}" if folder else "no folder to look in"
            raise DataError(
                f"{' '.join((self._called, split)).strip()}: {where}; expected FOLDER/{split or 'SPLIT'}/CLASS/IMAGE. "
                f"Set `folder: FOLDER` in the suite or {DATA_VARIABLE}=FOLDER in the environment"
            )
        return folder

    def _images(self, split: str) -> Path:
        """The folder of a split."""
        folder, name = self._root(split), self.splits.get(split, split)
        if not (folder / name).is_dir() or name in ("", ".", "..") or "/" in name:
            known = self.known_splits()
            hint = next((s for s in ("val", "valid", "validation", "dev", "test") if s in known and s != split), None)
            raise DataError(
                f"{self._called} {split}: there is no folder {folder / name}; expected FOLDER/{name}/CLASS/IMAGE. "
                f"{folder} has the splits {', '.join(known) or 'none'}"
                + (f"; write `splits: {{{split}: {hint}}}`, or `split: {hint}` beside the set" if hint else "")
            )
        return folder / name

    def _classes(self, split: str) -> tuple[tuple[str, ...], str]:
        """The names of all classes in the order of their labels, and where they come from, for messages."""
        folder, listed = self._root(split), self.classes
        if isinstance(listed, tuple):
            return checked(listed, "classes"), "in the list `classes`"
        if listed is not None or (folder / NAMES).is_file():
            near, far = folder / (listed or NAMES), Path(listed or NAMES).expanduser()
            path = near if near.is_file() else far
            try:
                lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"classes: {listed} cannot be read, neither in {folder} nor here ({error})") from None
            return checked([line.strip() for line in lines], str(path)), f"in {path}"
        # without a training split, a checkpoint cannot have learnt other labels than those of the split itself
        train = folder / self.splits.get("train", "train")
        known = class_folders(train) or class_folders(self._images(split))
        if not known:
            raise DataError(f"{self._images(split)}: no sub-folders with images; expected one per class")
        return tuple(c.name for c in known), f"a class of {train}"


def checked(names: Sequence[str], where: str) -> tuple[str, ...]:
    """Class names, in the order of the labels.

    Raises:
        DataError: when one is empty or appears twice.
    """
    for i, name in enumerate(names):
        if not name or name in names[:i]:
            raise DataError(f"{where}: class {i} is {shortened(name)}; expected a name that appears once")
    if not names:
        raise DataError(f"{where}: contains no class names")
    return tuple(names)


def natural(name: str) -> list[str | int]:
    """Key of natural order: `2` before `10`, `a2` before `a10`, in any case, as timm sorts the names of classes."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name.lower()))]


def visible(folder: Path) -> list[Path]:
    """The sub-folders that are not hidden, in natural order."""
    found = [f for f in folder.iterdir() if not hidden(f.name) and f.is_dir()] if folder.is_dir() else []
    return sorted(found, key=lambda f: (natural(f.name), f.name))


def class_folders(folder: Path) -> list[Path]:
    """The sub-folders with at least one image."""
    return [f for f in visible(folder) if next(pictures(f), None) is not None]


def pictures(folder: Path) -> Iterator[Path]:
    """The image files of a class, at any depth; hidden ones are left out."""
    for file in folder.rglob("*"):
        if file.suffix.lower() in SUFFIXES and not any(map(hidden, file.relative_to(folder).parts)):
            yield file


def hidden(name: str) -> bool:
    """Whether a file or folder belongs to a tool and not to the data."""
    return name.startswith(".") or name in IGNORED
