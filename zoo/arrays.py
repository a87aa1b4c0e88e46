"""Your own arrays of images and labels."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file
from torch import Tensor

from siegebench.data import ImageSet
from siegebench.errors import DataError, did_you_mean, shortened
from siegebench.types import Count, DataSource

from ._files import DATA_VARIABLE, data_folder
from ._images import KINDS, Channels, with_channels

Array = np.ndarray[Any, np.dtype[Any]]
SPLIT, SPLITS = "{split}", ("train", "val", "test")
AT_ONCE = 1024  # float images that are rounded at a time


@dataclass(frozen=True, kw_only=True)
class Arrays(DataSource):
    """Images and labels from arrays in a file. Nothing is random, and nothing is unpickled.

    Images are uint8, or floats in [0, 1], which are rounded to 8 bits; shaped [N, H, W], [N, H, W, C] or [N, C, H, W]
    with one or three channels. Labels are integers [N].

    `{split}` in `file`, `images` or `labels` stands for the name of the split, such as `file: mine_{split}.npz`. A file
    whose arrays have the splits in their names (`x_train`, `y_train`, `x_test`, `y_test`) has these splits. Any other
    file is the split `test`, and no network can be trained on it.

    Attributes:
        file: `.npz`, `.npy` or `.safetensors`; a path, or a file in the folder named by SIEGEBENCH_DATA.
        images: name of the array. By default the only one with three or four dimensions, of those with the name of the
            split in theirs if there are some.
        labels: name of the array; by default the only one with one dimension. Or a `.npy` file.
        num_classes: of the data set; by default the largest label of all splits plus one.
        channels: 3 or 1; by default those of the images.
    """

    local: ClassVar[tuple[str, ...]] = ("file", "images", "labels")  # images and labels are part of the digest

    file: str
    images: str | None = None
    labels: str | None = None
    num_classes: Count | None = None
    channels: Channels | None = None

    def load(self, split: str) -> ImageSet:
        if not self._named() and split not in self.known_splits():
            raise self.no_split(f"arrays {self.file}", split)
        path, found = self._open(split)
        with _blame(path):
            images = found[self._key(found, split, path, "images")]
        labels = self._labels(split)
        stored = _stored(images, path)
        if len(stored) != len(labels):
            raise DataError(f"{path}: {len(stored)} images and {len(labels)} labels")
        stored = with_channels(stored, self.channels or (1 if stored.shape[1] == 1 else 3))
        return ImageSet(
            stored, torch.from_numpy(labels), torch.arange(len(stored)), self.num_classes or self._classes(split),
            f"{path.stem} {split}", kind=KINDS[stored.shape[1]],
        )  # fmt: skip

    def known_splits(self) -> tuple[str, ...]:
        if self._named():
            return ("train", "test")
        _, found = self._open("test")
        return tuple(split for split in SPLITS if any(split in key for key in found)) or ("test",)

    def _named(self) -> bool:
        return any(SPLIT in text for text in (self.file, self.images or "", self.labels or ""))

    def _open(self, split: str, file: str = "") -> tuple[Path, Mapping[str, Array]]:
        name = (file or self.file).replace(SPLIT, split)
        base = data_folder()
        tried = [Path(name).expanduser(), *([base / name] if base else [])]
        path = next((p for p in tried if p.is_file()), None)
        if path is None:
            raise DataError(
                f"arrays {split}: there is no file {' or '.join(map(str, tried))}; write `file: PATH`, or set "
                f"{DATA_VARIABLE}=FOLDER in the environment"
            )
        with _blame(path):
            return path, _read(path)

    def _key(self, found: Mapping[str, Array], split: str, path: Path, what: str) -> str:
        """The name of an array in a file, as given or by its dimensions."""
        given = getattr(self, what)
        if given is not None:
            key: str = given.replace(SPLIT, split)
            if key not in found:
                raise DataError(f"{path}: has no array {key!r} for `{what}`. {did_you_mean(key, found)}")
            return key
        fits = _like_images if what == "images" else _like_labels
        of_split = [key for key in found if split in key]
        fitting = [key for key in of_split or found if fits(found[key])]
        if len(fitting) != 1:
            shapes = ", ".join(f"{key} {list(found[key].shape)}" for key in found)
            form = "[N, H, W, C] or [N, C, H, W]" if what == "images" else "integers [N] (argmax of one-hot rows)"
            raise DataError(f"{path}: which array are the {what}, {form}? Set `{what}` to one of: {shapes}")
        return fitting[0]

    def _labels(self, split: str) -> Array:
        """int64 [N]."""
        path, found = self._open(split)
        with _blame(path):
            if self.labels is not None and self.labels.endswith(".npy"):
                path, found = self._open(split, self.labels)
                values = found[next(iter(found))]
            else:
                values = found[self._key(found, split, path, "labels")]
        values = values[:, 0] if values.ndim == 2 and _like_labels(values) else values
        if values.ndim != 1 or values.dtype.kind not in "iu":
            raise DataError(
                f"{path}: labels are {values.dtype} {list(values.shape)}; expected integers [N], the number of each "
                "image's class (argmax of one-hot rows)"
            )
        return values.astype(np.int64)

    def _classes(self, split: str) -> int:
        """The largest label of all splits plus one."""
        most = int(self._labels(split).max(initial=0))
        for other in self.known_splits():
            with suppress(DataError):
                most = max(most, int(self._labels(other).max(initial=0)))
        return most + 1


def _like_images(array: Array) -> bool:
    return array.ndim in (3, 4)


def _like_labels(array: Array) -> bool:
    return array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 1)


def _read(path: Path) -> Mapping[str, Array]:
    """The arrays of a file by name; those of a .npz file are read when they are asked for."""
    if path.suffix == ".safetensors":
        tensors: dict[str, Array] = load_file(path)
        for name, tensor in tensors.items():
            if tensor.dtype.kind == "V":  # of another package, which makes numpy know it
                raise ValueError(f"{shortened(name)} is {tensor.dtype}, save it as float32")
        return tensors
    found: Any = np.load(path, allow_pickle=False, mmap_mode="r" if path.suffix == ".npy" else None)
    if isinstance(found, np.ndarray):
        return {"images": found}
    if strange := [name for name in found.zip.namelist() if not name.endswith(".npy")]:
        raise ValueError(f"a zip archive with {shortened(strange[0])}")
    named: Mapping[str, Array] = found
    return named


def _stored(images: Array, path: Path) -> Tensor:
    """The images as uint8 [N, C, H, W].

    Raises:
        DataError: for another shape, another type, or floats outside [0, 1].
    """
    shape = list(images.shape)
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and (shape[1] in KINDS) != (shape[3] in KINDS):
        images = images if shape[1] in KINDS else images.transpose(0, 3, 1, 2)
    else:
        raise DataError(f"{path}: images are {shape}; expected [N, H, W], [N, H, W, C] or [N, C, H, W], C = 1 or 3")
    if images.size == 0 and len(images):
        raise DataError(f"{path}: images are {shape}; expected a height and a width above 0")
    if images.dtype == np.uint8:
        if images.size and images.max() == 1:
            raise DataError(
                f"{path}: images are uint8 from 0 to 1; expected 0 to 255, or floats in [0, 1]. Multiply them by 255"
            )
        return torch.from_numpy(np.ascontiguousarray(images).copy())
    low, high = (images.min(), images.max()) if images.size else (0, 0)
    if images.dtype.kind != "f" or not (low >= 0 and high <= 1):
        hint = ". Convert them: images.astype('uint8')" if 1 < high <= 255 and low >= 0 else ""
        raise DataError(
            f"{path}: images are {images.dtype} from {low:g} to {high:g}; expected uint8, or floats in [0, 1]{hint}"
        )
    out = torch.empty(images.shape, dtype=torch.uint8)
    for start in range(0, len(out), AT_ONCE):
        piece = images[start : start + AT_ONCE].astype(np.float64) * 255
        out[start : start + AT_ONCE] = torch.from_numpy(piece.round().astype(np.uint8))
    return out


@contextmanager
def _blame(path: Path) -> Iterator[None]:
    """Errors of the readers, with the name of the file."""
    try:
        yield
    except (OSError, ValueError, EOFError, BadZipFile, TypeError, zlib.error, SafetensorError) as error:
        objects = "allow_pickle" in str(error) or "Python objects" in str(error)
        said = "it holds Python objects, which are not loaded" if objects else str(error)[:160]
        raise DataError(f"{path}: not a readable .npz, .npy or .safetensors file ({said})") from None
