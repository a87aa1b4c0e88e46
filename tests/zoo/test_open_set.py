"""Open set: known and unknown classes divide a data set, and labels are numbered anew."""

from __future__ import annotations

import pytest
import torch

from siegebench import registry
from siegebench.data import ImageSet
from siegebench.errors import DataError
from siegebench.types import DataSource


def part(name: str, split: str = "test", **parameters: object) -> ImageSet:
    source = registry.build(
        DataSource, {"name": "open_set", "data": "digits", "unknown": 3, "part": name, **parameters}
    )
    return source.load(split)


def test_known_and_unknown_images_are_those_of_the_whole() -> None:
    whole = registry.build(DataSource, "digits").load("test")
    known, unknown = part("known"), part("unknown")
    assert (known.num_classes, unknown.num_classes) == (7, 3)
    assert sorted([*known.ids.tolist(), *unknown.ids.tolist()]) == sorted(whole.ids.tolist())
    for found in (known, unknown):
        row = torch.searchsorted(whole.ids, found.ids)
        assert torch.equal(whole.images[row], found.images)
        # each new label stands for one old label
        pairs = {(int(a), int(b)) for a, b in zip(whole.labels[row], found.labels, strict=True)}
        assert len(pairs) == found.num_classes
        assert [a for _, a in sorted(pairs)] == list(range(found.num_classes))
        assert set(part(found.name.rpartition("/")[2], "train").labels.tolist()) == set(range(found.num_classes))


def test_another_seed_leaves_other_classes_out() -> None:
    chosen = {tuple(sorted(part("unknown", seed=seed).ids.tolist())) for seed in range(4)}
    assert len(chosen) > 1


def test_two_classes_must_stay() -> None:
    with pytest.raises(DataError, match="unknown is 9; at least 2 of its 10 classes must stay known"):
        part("known", unknown=9)
