"""A folder of images with one sub-folder per class."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from siegebench.data import ImageSet
from siegebench.errors import DataError, did_you_mean, shortened
from siegebench.rows import Rows
from siegebench.types import Count, DataSource

from ._files import DATA_VARIABLE, data_folder
from ._images import KINDS, Blobs, Channels, Encoded, Fit

SUFFIXES = {
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".bmp", ".pbm", ".pgm", ".ppm", ".pnm", ".webp", ".avif", ".tif",
    ".tiff", ".gif", ".tga",
}  # fmt: skip
# pictures in files that are not read; the empty suffix is a name without a dot
UNREAD = {
    "", ".heic", ".heif", ".jxl", ".j2k", ".svg", ".exr", ".hdr", ".pfm", ".npy", ".npz", ".mat", ".dcm", ".dng",
    ".raw", ".ico", ".psd",
}  # fmt: skip
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
        cut: pixels removed at each border of an image, before it is resized.
        classes: names of the class folders in the order of their labels, or a text file with one name in each line (a
            path, or a file in FOLDER). By default `classes.txt` in FOLDER, if it exists. Not every class needs images;
            a folder that is not listed is refused.
        splits: other names of splits, such as `{test: val}` to evaluate FOLDER/val where a suite says test.
    """

    local: ClassVar[tuple[str, ...]] = ("folder", "classes", "splits")  # labels and images are part of the digest
    added: ClassVar[tuple[str, ...]] = ("channels", "cut")

    folder: str | None = None
    size: Count | None = None
    fit: Fit = "crop"
    channels: Channels = 3
    cut: Annotated[int, Field(ge=0, strict=True)] = 0
    classes: tuple[str, ...] | str | None = None
    splits: dict[str, str] = field(default_factory=dict)

    def load(self, split: str) -> ImageSet:
        return self.scan(split).in_memory()

    def scan(self, split: str) -> ImageSet:
        folder, images = self._root(split), self._images(split)
        names, said = self._classes(split)
        number = {composed(name): label for label, name in enumerate(names)}
        found = class_folders(images)
        check_left_out(images)
        if strange := [c.name for c in found if composed(c.name) not in number]:
            raise DataError(
                f"{images}: the class folder {strange[0]!r} is not {said}. {did_you_mean(strange[0], names)} "
                f"Remove it, or list all classes with `classes: [...]` or in {folder / NAMES}"
            )
        files = [(file, number[composed(c.name)]) for c in found for file in sorted(pictures(c))]
        if not files:
            raise DataError(f"{images}: contains no images; expected {images}/CLASS/IMAGE")

        def blobs(rows: Sequence[int]) -> Blobs:
            return ((str(files[i][0]), content(files[i][0])) for i in rows)

        return ImageSet(
            Rows(Encoded(len(files), blobs, str(images), self.size, self.fit, self.channels, self.cut)),
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
            same = [s for s in known if s.lower() == split.lower()]
            usual: list[str] = [s for s in ("val", "valid", "validation", "dev", "test") if s in known and s != split]
            hint = next(iter(same + usual), None)
            flat = not known and class_folders(folder)
            raise DataError(
                f"{self._called} {split}: there is no folder {folder / name}; expected FOLDER/{name}/CLASS/IMAGE. "
                f"{folder} has the splits {', '.join(known) or 'none'}"
                + (f"; write `splits: {{{split}: {hint}}}`, or `split: {hint}` beside the set" if hint else "")
                + (f"; its sub-folders contain images: move them into {folder / name}" if flat else "")
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
            except UnicodeDecodeError:
                raise DataError(
                    f"{path}: not in UTF-8; expected a text file with one class name in each line"
                ) from None
            except OSError as error:
                raise DataError(f"classes: {listed} cannot be read, neither in {folder} nor here ({error})") from None
            return checked([line.strip() for line in lines], str(path)), f"in {path}"
        # without a training split, a checkpoint cannot have learnt other labels than those of the split itself
        train = folder / self.splits.get("train", "train")
        known = class_folders(train) or class_folders(self._images(split))
        if not known:
            check_left_out(self._images(split))
            raise DataError(f"{self._images(split)}: no sub-folders with images; expected one per class")
        check_left_out(train)
        for one, two in pairwise(sorted((c.name for c in known), key=composed)):
            if composed(one) == composed(two):
                raise DataError(f"{train}: two class folders are called {one!r} and {two!r}, the same name; merge them")
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


def composed(name: str) -> str:
    """A name with composed letters: macOS stores `é` as `e` and an accent, also in archives."""
    return unicodedata.normalize("NFC", name)


def visible(folder: Path) -> list[Path]:
    """The sub-folders that are not hidden, in natural order."""
    found = [f for f in folder.iterdir() if not hidden(f.name) and f.is_dir()] if folder.is_dir() else []
    return sorted(found, key=lambda f: (natural(f.name), f.name))


def class_folders(folder: Path) -> list[Path]:
    """The sub-folders with at least one image."""
    return [f for f in visible(folder) if next(pictures(f), None) is not None]


def check_left_out(folder: Path) -> None:
    """Refuse a sub-folder with pictures none of which is read: without it, the other classes get other labels.

    Raises:
        DataError: naming one of its files.
    """
    for sub in visible(folder):
        if next(pictures(sub), None) is None and (other := next(files_below(sub, UNREAD), None)) is not None:
            raise DataError(
                f"{sub}: contains no file that is read as an image; found {other.name}, expected "
                f"{', '.join(sorted(SUFFIXES))}. Convert the files, or move the folder away if it is no class"
            )


def pictures(folder: Path) -> Iterator[Path]:
    """The image files of a class, at any depth; hidden ones are left out."""
    return files_below(folder, SUFFIXES)


def files_below(folder: Path, suffixes: set[str], above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """The files that are not hidden, also behind links to other folders; a link to a folder above is not followed.

    None in a folder that does not exist.
    """
    real = folder.resolve()
    if not real.is_dir() or any(real == one or real in one.parents for one in above):
        return
    with os.scandir(folder) as entries:
        found = [(entry.name, entry.is_dir()) for entry in entries if not hidden(entry.name)]
    for name, is_folder in found:
        if is_folder:
            yield from files_below(folder / name, suffixes, (*above, real))
        elif Path(name).suffix.lower() in suffixes:
            yield folder / name


def content(file: Path) -> bytes:
    """The bytes of an image file.

    Raises:
        DataError: when it cannot be read, such as a link to a file that is gone.
    """
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from None


def hidden(name: str) -> bool:
    """Whether a file or folder belongs to a tool and not to the data."""
    return name.startswith(".") or name in IGNORED
