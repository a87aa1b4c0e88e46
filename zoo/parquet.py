"""Image data sets as parquet files in the Hugging Face layout: a column of encoded images, a column of labels."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import PIL
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from siegebench.data import ImageSet
from siegebench.errors import DataError
from siegebench.rows import Rows
from siegebench.types import Count, DataSource

from ._files import DATA_VARIABLE, cache_folder, data_folder, sha256
from ._images import KINDS, Channels, Encoded, Fit, stacked, write

BATCH, BUFFER = 64, 2**20  # encoded images, and bytes of a file, to read at a time
DECODER = 2  # raised when the same file is decoded to other pixels, so that the cache is not used
MANY = 4  # if at least 1/MANY of the images of a file is requested, the whole file is decoded into the cache


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How to read the files.

    Attributes:
        num_classes: labels are 0..num_classes - 1.
        image, label: names of the columns; an image is encoded bytes, or a struct with `bytes` and `path`.
        size, fit: every image is resized to a square of this size; None keeps the size of the images.
        group_by_path: images whose `path` differs only after the last `_` form a group (frames of one track).
        channels: 3, or 1 for grey images.
        cut: pixels removed at each border of an image, before it is resized.
    """

    num_classes: int
    image: str = "image"
    label: str = "label"
    size: int | None = None
    fit: Fit = "crop"
    group_by_path: bool = False
    channels: Channels = 3
    cut: int = 0


@dataclass(frozen=True, kw_only=True)
class Parquet(DataSource):
    """Files `PREFIX-SPLIT-*.parquet` of a folder. Decoded pixels are cached; nothing is random.

    Attributes:
        num_classes: of the data set.
        prefix: of the file names; empty for `SPLIT-*.parquet`.
        folder: of the files; by default the folder named by SIEGEBENCH_DATA, or the folder in it that has them.
        image, label, size, fit, group_by_path, channels, cut: see Layout.
    """

    local: ClassVar[tuple[str, ...]] = ("folder",)
    added: ClassVar[tuple[str, ...]] = ("channels", "cut")

    num_classes: Count
    prefix: str = ""
    folder: str | None = None
    image: str = "image"
    label: str = "label"
    size: Count | None = None
    fit: Fit = "crop"
    group_by_path: bool = False
    channels: Channels = 3
    cut: Annotated[int, Field(ge=0, strict=True)] = 0

    def load(self, split: str) -> ImageSet:
        return self.scan(split).in_memory()

    def scan(self, split: str) -> ImageSet:
        stem = f"{self.prefix}-{split}" if self.prefix else split
        name = f"{self.prefix or 'parquet'} {split}"
        folder = self._home()
        if folder is None:
            raise DataError(
                f"{name}: no folder to look in for {stem}-*.parquet; "
                f"set {DATA_VARIABLE}=FOLDER in the environment, or `folder: FOLDER` in the suite"
            )
        layout = Layout(
            num_classes=self.num_classes, image=self.image, label=self.label, size=self.size, fit=self.fit,
            group_by_path=self.group_by_path, channels=self.channels, cut=self.cut,
        )  # fmt: skip
        return scan(shards(folder, stem, name, self.known_splits()), layout, name)

    def known_splits(self) -> tuple[str, ...]:
        folder, head = self._home(), self._head()
        names = (path.name.removeprefix(head) for path in folder.glob(f"{head}*-*.parquet")) if folder else ()
        found = sorted({name.partition("-")[0] for name in names})
        return tuple(sorted(found, key=lambda split: split != "train")) or super().known_splits()

    def _head(self) -> str:
        return f"{self.prefix}-" if self.prefix else ""

    def _home(self) -> Path | None:
        """Where the files are: the folder given, or that of the environment variable, or one in it."""
        if self.folder:
            return Path(self.folder).expanduser()
        folder = data_folder()
        if folder is None or not self.prefix or any(folder.glob(f"{self._head()}*.parquet")):
            return folder
        return next((file.parent for file in sorted(folder.glob(f"*/{self._head()}*.parquet"))), folder)


def shards(folder: Path, stem: str, name: str, splits: Sequence[str] = ()) -> list[Path]:
    """The files of a split in their published order.

    Args:
        splits: those that there are, for the message.

    Raises:
        DataError: when there are none or some are missing; names the folder and the setting to change.
    """
    hint = f"set {DATA_VARIABLE}=FOLDER in the environment, or `folder: FOLDER` in the suite"
    if not folder.is_dir():
        raise DataError(f"{name}: there is no folder {folder}; {hint}")
    found = sorted(folder.glob(f"{stem}-*.parquet"))
    if not found:
        there = f"; it has the splits {', '.join(splits)}" if splits and stem.rpartition("-")[2] not in splits else ""
        raise DataError(f"{name}: no {stem}-*.parquet in {folder}{there}; {hint}")
    if not complete(found):
        raise DataError(f"{name}: {folder} has {len(found)} files {stem}-*.parquet; the last is {found[-1].name}")
    return found


def complete(files: list[Path]) -> bool:
    """Whether the number of files is the `-of-N` in their names."""
    stated = re.search(r"-of-(\d+)\.parquet$", files[-1].name) if files else None
    return bool(files) and (stated is None or int(stated[1]) == len(files))


def scan(files: list[Path], layout: Layout, name: str) -> ImageSet:
    """All rows of the files. Labels and groups are read at once, images when they are requested.

    Raises:
        DataError: at once when a file is corrupt or lacks a column; later when an image cannot be read.
    """
    parts, labels, paths = [], [], []
    classes: tuple[str, ...] | None = None
    for file in files:
        with _blame(file):
            parquet = pq.ParquetFile(file)
            _check_columns(file, parquet.schema_arrow, layout)
            classes = classes or _class_names(parquet.schema_arrow.metadata, layout)
            if parquet.metadata.num_rows == 0:
                raise DataError(f"{file}: contains no rows")
            parts.append(Shard(parquet.metadata.num_rows, partial(_blobs, file, layout.image), str(file), layout.size,
                               layout.fit, layout.channels, layout.cut, file, layout.image))  # fmt: skip
            column = parquet.read([layout.label]).column(layout.label)
            if column.null_count:
                raise DataError(f"{file}: {column.null_count} rows have no label")
            labels.append(torch.from_numpy(column.to_numpy().astype(np.int64)))
            if layout.group_by_path:
                paths += _paths(parquet, layout.image)
    return ImageSet(
        Rows(*parts), torch.cat(labels), torch.arange(sum(part.count for part in parts)), layout.num_classes, name,
        _groups(paths) if layout.group_by_path else None, KINDS[layout.channels], classes,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Shard(Encoded):
    """The images of one parquet file. When many are requested, all are decoded into a cache file that is memory-mapped.

    Attributes:
        file, column: where the images are.
    """

    file: Path = Path()
    column: str = "image"

    def read(self, rows: Tensor) -> Tensor:
        if MANY * len(rows) < self.count:
            return super().read(rows)
        images = self._whole()
        return images if torch.equal(rows, torch.arange(self.count)) else images[rows]

    def _whole(self) -> Tensor:
        """All images, from the cache if possible: decoding 39,209 GTSRB images takes 13 s."""
        shape = f"{self.size or 'as-is'}-{self.fit}-{self.channels}ch" + (f"-cut{self.cut}" if self.cut else "")
        how = f"{self.column}-{shape}-v{DECODER}-pillow{PIL.__version__}"
        with _blame(self.file):
            cached = cache_folder() / "decoded" / f"{sha256(self.file)}-{how}.safetensors"
        with contextlib.suppress(OSError, SafetensorError, KeyError):  # absent or damaged: decode again
            return load_file(cached)["images"]
        every = range(self.count)
        with contextlib.suppress(OSError):  # without a writable cache, reading takes more time and memory
            write(cached, self.decoded(every), self.count, self.where)
            return load_file(cached)["images"]
        return stacked(self.decoded(every), self.count, self.where)


def _blobs(file: Path, column: str, rows: Sequence[int]) -> Iterator[tuple[str, bytes]]:
    """The encoded images of some rows, in ascending order; row groups without any of them are not read."""
    # an explicit buffer and small batches: otherwise a whole row group is loaded into memory
    with _blame(file), pq.ParquetFile(file, buffer_size=BUFFER, pre_buffer=False) as parquet:
        start, wanted = 0, iter([*rows, -1])
        row = next(wanted)
        for group in range(parquet.metadata.num_row_groups):
            end = start + parquet.metadata.row_group(group).num_rows
            if row < 0 or row >= end:
                start = end
                continue
            for batch in parquet.iter_batches(batch_size=BATCH, row_groups=[group], columns=[column]):
                values = batch.column(0)
                if pa.types.is_struct(values.type):
                    values = values.field("bytes")
                while start <= row < start + len(values):
                    blob = values[row - start].as_py()
                    if blob is None:
                        raise DataError(f"{file}: row {row} has no image")
                    yield f"{file}: row {row}", blob
                    row = next(wanted)
                start += len(values)


def _class_names(metadata: Mapping[bytes, bytes] | None, layout: Layout) -> tuple[str, ...] | None:
    """The names that the `datasets` library writes into a file; None if there are none."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        names = tuple(map(str, features[layout.label]["names"]))
    except (KeyError, TypeError, ValueError):
        return None
    return names if len(names) == layout.num_classes else None


def _paths(parquet: Any, column: str) -> list[str]:
    values = parquet.read([f"{column}.path"]).column(column).combine_chunks().field("path")
    return [value or "" for value in values.to_pylist()]


def _groups(paths: list[str]) -> Tensor | None:
    """Frames of one track have the same path before the last `_`; None if every image is its own group."""
    tracks, member = np.unique([path.rsplit("_", 1)[0] for path in paths], return_inverse=True)
    return None if len(tracks) == len(paths) else torch.from_numpy(member.astype(np.int64))


def _check_columns(file: Path, schema: Any, layout: Layout) -> None:
    for column in (layout.image, layout.label):
        if column not in schema.names:
            raise DataError(f"{file}: no column {column!r}; it has {', '.join(schema.names)}")
    image, label = schema.field(layout.image).type, schema.field(layout.label).type
    inner = {image.field(i).name: image.field(i).type for i in range(image.num_fields)}
    encoded = inner.get("bytes", image)
    if not (pa.types.is_binary(encoded) or pa.types.is_large_binary(encoded)):
        raise DataError(f"{file}: column {layout.image!r} is {image}, expected encoded images (bytes)")
    if layout.group_by_path and "path" not in inner:
        raise DataError(f"{file}: column {layout.image!r} has no `path` to group by")
    if not pa.types.is_integer(label):
        raise DataError(f"{file}: column {layout.label!r} is {label}, expected integers")


@contextlib.contextmanager
def _blame(file: Path) -> Iterator[None]:
    """Add the name of the file to errors of the parquet reader."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: not a readable parquet file ({str(error)[:160]})") from None
