"""The contract of datasets, one function per clause."""

from __future__ import annotations

import torch

from siegebench.errors import ContractError, DataError
from siegebench.testing.specimens import (
    Case,
    NotChecked,
    require,
)


def loads_both_splits(case: Case) -> None:
    for split in ("train", "test"):
        try:
            data = case.kept[split] = case.entry.load(split)
        except DataError as error:
            raise NotChecked(f"images not available: {error}") from None
        require(
            data.stored.dtype == data.kind.dtype, f"{split}: images are {data.stored.dtype}"
        )  # ImageSet checks the rest
        boxed = all(bool(data.kind.inside(data.kind.load(piece)).all()) for piece in data.stored.pieces())
        require(boxed, f"{split}: images are outside the box {data.kind.box} of {data.kind.name}")
        require(len(data.ids.unique()) == len(data), f"{split}: ids are not unique")
        counts = data.labels.bincount(minlength=data.num_classes)
        named = data.classes is not None  # a list of classes may name some that have no images
        require(named or counts.min() > 0, f"{split}: class {int(counts.argmin())} has no image")
    train, test = case.kept["train"], case.kept["test"]
    require(train.num_classes == test.num_classes, "the splits differ in num_classes")
    require(train.classes == test.classes, "the splits differ in the names of their classes")
    require(train.kind == test.kind, "the splits differ in their kind")


def loads_the_same_images_again(case: Case) -> None:
    for split in ("train", "test"):
        again = case.entry.load(split)
        require(again.digest == case.kept[split].digest, f"{split}: a second load has another digest")


def scans_what_it_loads(case: Case) -> None:
    for split in ("train", "test"):
        seen, whole = case.entry.scan(split), case.kept[split]
        require(len(seen) == len(whole), f"{split}: scan finds {len(seen)} images, load {len(whole)}")
        few = torch.arange(len(whole))[:: max(1, len(whole) // 16)]
        part, expected = seen.select(few).in_memory(), whole.select(few)
        require(part.digest == expected.digest, f"{split}: scan and load disagree about some images, labels or ids")


def keeps_test_images_out_of_the_training_set(case: Case) -> None:
    seen = {row.tobytes() for row in case.kept["train"].images.numpy()}
    shared = sum(row.tobytes() in seen for row in case.kept["test"].images.numpy())
    most = len(case.kept["test"]) // 1000  # published sets have some duplicates
    require(shared <= most, f"{shared} of {len(case.kept['test'])} test images are in the training set bit by bit")


def refuses_an_unknown_split(case: Case) -> None:
    try:
        case.entry.load("no_such_split")
    except DataError:
        return
    raise ContractError("load('no_such_split') must raise DataError")


CLAUSES = (
    loads_both_splits,
    loads_the_same_images_again,
    scans_what_it_loads,
    keeps_test_images_out_of_the_training_set,
    refuses_an_unknown_split,
)
