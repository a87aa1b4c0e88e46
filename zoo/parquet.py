"""Image data sets as parquet files in the Hugging Face layout: a column of encoded images, a column of labels."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import PIL
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from siegebench.data import ImageSet
from siegebench.errors import DataError
from siegebench.types import Count, DataSource
from siegebench.weights import save_weights

from ._files import DATA_VARIABLE, cache_folder, data_folder, sha256
from ._images import Fit, decode, stacked


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How to read the files.

    Attributes:
        num_classes: labels are 0..num_classes - 1.
        image, label: names of the columns; an image is encoded bytes, or a struct with `bytes` and `path`.
        size, fit: every image is brought to a square of this size; None takes the images as they are.
        group_by_path: images whose `path` differs only behind the last `_` form a group (frames of one track).
    """

    num_classes: int
    image: str = "image"
    label: str = "label"
    size: int | None = None
    fit: Fit = "crop"
    group_by_path: bool = False


@dataclass(frozen=True, kw_only=True)
class Parquet(DataSource):
    """Files `PREFIX-SPLIT-*.parquet` of a folder. Decoded pixels are cached; nothing is random.

    Attributes:
        num_classes: of the data set.
        prefix: the files' names begin with it; empty for `SPLIT-*.parquet`.
        folder: where they lie; the folder named by SIEGEBENCH_DATA when left out.
        image, label, size, fit, group_by_path: see Layout.
    """

    local: ClassVar[tuple[str, ...]] = ("folder",)

    num_classes: Count
    prefix: str = ""
    folder: str | None = None
    image: str = "image"
    label: str = "label"
    size: Count | None = None
    fit: Fit = "crop"
    group_by_path: bool = False

    def load(self, split: str) -> ImageSet:
        stem = f"{self.prefix}-{split}" if self.prefix else split
        name = f"{self.prefix or 'parquet'} {split}"
        folder = Path(self.folder).expanduser() if self.folder else data_folder()
        if folder is None:
            raise DataError(
                f"{name}: no folder to look in for {stem}-*.parquet; "
                f"set {DATA_VARIABLE}=FOLDER in the environment, or `folder: FOLDER` in the suite"
            )
        layout = Layout(
            num_classes=self.num_classes, image=self.image, label=self.label, size=self.size, fit=self.fit,
            group_by_path=self.group_by_path,
        )  # fmt: skip
        return read(shards(folder, stem, name), layout, name)


def shards(folder: Path, stem: str, name: str) -> list[Path]:
    """The files of a split in their published order.

    Raises:
        DataError: when there are none or some are missing; says where it looked and what to type.
    """
    hint = f"set {DATA_VARIABLE}=FOLDER in the environment, or `folder: FOLDER` in the suite"
    if not folder.is_dir():
        raise DataError(f"{name}: there is no folder {folder}; {hint}")
    found = sorted(folder.glob(f"{stem}-*.parquet"))
    if not found:
        raise DataError(f"{name}: no {stem}-*.parquet in {folder}; {hint}")
    if not complete(found):
        raise DataError(f"{name}: {folder} has {len(found)} files {stem}-*.parquet; the last is {found[-1].name}")
    return found


def complete(files: list[Path]) -> bool:
    """Whether there are as many files as the `-of-N` in their names says."""
    stated = re.search(r"-of-(\d+)\.parquet$", files[-1].name) if files else None
    return bool(files) and (stated is None or int(stated[1]) == len(files))


def read(files: list[Path], layout: Layout, name: str) -> ImageSet:
    """All rows of the files.

    Raises:
        DataError: when a file is corrupt, lacks a column, or holds an image that cannot be read.
    """
    images, labels, paths = [], [], []
    for file in files:
        with _blame(file):
            parquet = pq.ParquetFile(file)
            _check_columns(file, parquet.schema_arrow, layout)
            if parquet.metadata.num_rows == 0:
                raise DataError(f"{file}: holds no rows")
            images.append(_pixels(file, parquet, layout))
            column = parquet.read([layout.label]).column(layout.label)
            if column.null_count:
                raise DataError(f"{file}: {column.null_count} rows have no label")
            labels.append(torch.from_numpy(column.to_numpy().astype(np.int64)))
            if layout.group_by_path:
                paths += _paths(parquet, layout.image)
    # shards of one set have one size; `stacked` says so where they do not
    if len({part.shape[1:] for part in images}) > 1:
        stacked([part[0] for part in images], name)
    return ImageSet(
        torch.cat(images), torch.cat(labels), torch.arange(sum(map(len, images))), layout.num_classes, name,
        _groups(paths) if layout.group_by_path else None,
    )  # fmt: skip


def _pixels(file: Path, parquet: Any, layout: Layout) -> Tensor:
    """Decoded images of one file, from the cache where it has them: decoding 39,209 GTSRB images takes 13 s."""
    how = f"{layout.image}-{layout.size or 'as-is'}-{layout.fit}-pillow{PIL.__version__}"
    cached = cache_folder() / "decoded" / f"{sha256(file)}-{how}.safetensors"
    with contextlib.suppress(OSError, SafetensorError, KeyError):  # absent or damaged: decode again
        return load_file(cached)["images"]
    images = stacked(decode(_blobs(file, parquet, layout.image), layout.size, layout.fit), str(file))
    with contextlib.suppress(OSError):  # a cache that cannot be written only costs time
        save_weights(cached, {"images": images})
    return images


def _blobs(file: Path, parquet: Any, column: str) -> Iterator[tuple[str, bytes]]:
    row = 0
    for batch in parquet.iter_batches(batch_size=1024, columns=[column]):
        values = batch.column(0)
        if pa.types.is_struct(values.type):
            values = values.field("bytes")
        for value in values:
            blob = value.as_py()
            if blob is None:
                raise DataError(f"{file}: row {row} has no image")
            yield f"{file}: row {row}", blob
            row += 1


def _paths(parquet: Any, column: str) -> list[str]:
    values = parquet.read([f"{column}.path"]).column(column).combine_chunks().field("path")
    return [value or "" for value in values.to_pylist()]


def _groups(paths: list[str]) -> Tensor | None:
    """Frames of one track share everything before the last `_`; None where every image stands alone."""
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
    """Name the file in the errors of the parquet reader."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: not a readable parquet file ({str(error)[:160]})") from None
