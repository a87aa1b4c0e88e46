"""Labelled texts in parquet or TSV files: a column of texts, a column of labels."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import Field

from siegebench.data import TEXT, ImageSet
from siegebench.draws import Draws
from siegebench.errors import DataError
from siegebench.text import content_groups, encoded
from siegebench.types import Class, Count, DataSource

from ._files import DATA_VARIABLE, data_folder

SPLIT_SEED = 0  # a split that is made here is the same in every suite
Names = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Texts(DataSource):
    """Texts as Unicode code points, int64 [N, 1, 1, length]; equal texts are one group, so no split divides them.

    A test text that is also in the training file is left out of the training split. Texts are never shown.

    Random: a split that is made here, by a fixed seed.

    Attributes:
        train, test: names of the files, below the folder; a parquet file, or TSV with a header line.
        whole: one file without a published split, in place of the two; `held_out` of its texts are the test split.
        held_out: share of the texts of `whole` that are the test split.
        num_classes: labels are 0..num_classes - 1.
        text, label: names of the columns.
        length: characters of a text that are kept.
        only: the classes that are kept, in the order of their new labels; empty: all.
        names: of the classes.
        folder: of the files; by default the folder named by SIEGEBENCH_DATA.
    """

    local: ClassVar[tuple[str, ...]] = ("folder",)

    num_classes: Count
    train: str = ""
    test: str = ""
    whole: str = ""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.2
    text: str = "text"
    label: str = "label"
    length: Count = 128
    only: tuple[Class, ...] = ()
    names: Names = ()
    folder: str | None = None

    def load(self, split: str) -> ImageSet:
        if split not in self.known_splits():
            raise self.no_split(self.whole or self.train, split)
        if self.whole:
            every = self._set(self.whole, split)
            assert every.groups is not None
            owner = Draws(SPLIT_SEED, every.groups).uniform(purpose="held out") < self.held_out
            return every.select((owner == (split == "test")).nonzero().squeeze(1))
        found = self._set(getattr(self, split), split)
        if split == "test":
            return found
        both = torch.cat([found.images, self._set(self.test, "test").images])
        groups = content_groups(both)
        fresh = ~torch.isin(groups[: len(found)], groups[len(found) :])
        return found.select(fresh.nonzero().squeeze(1))

    def _set(self, file: str, split: str) -> ImageSet:
        texts, labels = rows(found_file(file, self.folder), self.text, self.label)
        y = torch.tensor(labels)
        x, ids, classes, names = encoded(texts, self.length), torch.arange(len(y)), self.num_classes, self.names
        if self.only:
            places = torch.full((classes,), -1).scatter(0, torch.tensor(self.only), torch.arange(len(self.only)))
            ids = (places[y] >= 0).nonzero().squeeze(1)
            x, y, classes = x[ids], places[y[ids]], len(self.only)
            names = tuple(names[c] for c in self.only) if names else ()
        name = f"{Path(file).stem} {split}"
        return ImageSet(x, y, ids, classes, name, content_groups(x), TEXT, names or None)


def found_file(file: str, folder: str | None) -> Path:
    """A file below a folder, or below that of the environment variable.

    Raises:
        DataError: when it is missing; names the folder and the setting to change.
    """
    hint = f"set {DATA_VARIABLE}=FOLDER in the environment, or `folder: FOLDER` in the suite"
    base = Path(folder).expanduser() if folder else data_folder()
    if base is None:
        raise DataError(f"{file}: no folder to look in; {hint}")
    for path in (base / file, base / Path(file).name):
        if path.is_file():
            return path
    raise DataError(f"{file}: not found in {base}; {hint}")


def rows(path: Path, text: str, label: str) -> tuple[list[str], list[int]]:
    """(texts, labels) of a file, in its order.

    Raises:
        DataError: when it cannot be read, lacks a column, or a label is no integer. No text is quoted.
    """
    try:
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            columns = {name: table.column(name).to_pylist() for name in table.column_names}
        else:
            with path.open(encoding="utf-8", newline="") as file:
                lines = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
            columns = {name: [line[name] for line in lines] for name in (lines[0] if lines else ())}
    except (pa.ArrowException, OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not readable ({type(error).__name__})") from None
    for name in (text, label):
        if name not in columns:
            raise DataError(f"{path}: no column {name!r}; it has {', '.join(map(str, columns))}")
    try:
        return [str(value) for value in columns[text]], [int(value) for value in columns[label]]
    except (TypeError, ValueError):
        raise DataError(f"{path}: column {label!r} has labels that are no integers") from None
