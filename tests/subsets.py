"""The evaluated slices of the data sets as fixed lists of ids: a change of the drawing code cannot move them unseen."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from siegebench.data import ImageSet
from siegebench.errors import DataError

STORED = {"digits": (100, 200), "cifar10_jpeg": (200, 500, 1000), "gtsrb": (500,)}


def stored(name: str, count: int) -> list[int] | None:
    """Ids of the slice of `count` test images of a data set; None where no list is kept."""
    file = _file(name, count)
    return json.loads(file.read_text(encoding="utf-8"))["ids"] if file.is_file() else None


def check(name: str, count: int, data: ImageSet) -> None:
    """Refuse a test set whose labels are not the ones that the list was drawn from.

    Raises:
        DataError: naming the data set.
    """
    file = _file(name, count)
    if not file.is_file():
        raise DataError(f"no list of {count} ids of {name} is kept")
    if json.loads(file.read_text(encoding="utf-8"))["labels"] != labels_hash(data):
        raise DataError(f"{name}: the labels of its test set are not those that {file.name} was drawn from")


def write(name: str, count: int, data: ImageSet, ids: list[int]) -> None:
    """Keep the list of a slice."""
    content = {"dataset": name, "split": "test", "count": count, "labels": labels_hash(data), "ids": ids}
    _file(name, count).write_text(json.dumps(content) + "\n", encoding="utf-8")


def labels_hash(data: ImageSet) -> str:
    """sha256 of the labels of a whole split, in its published order."""
    return hashlib.sha256(data.labels.numpy().astype("<i8").tobytes()).hexdigest()


def _file(name: str, count: int) -> Path:
    return Path(__file__).parent / "subset_data" / f"{name}_{count}.json"
