"""Balanced training images: as many of each class, repeats beside their image, and other splits untouched."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from siegebench.zoo.balanced import Balanced

from siegebench import registry
from siegebench.data import ImageSet, split_clean
from siegebench.types import DataSource
from tests import kit
from tests.test_contract import png


@dataclass(frozen=True, kw_only=True)
class Unequal(DataSource):
    """50 images of class 0, 7 of class 1, 20 of class 2."""

    grouped: bool = False

    def load(self, split: str) -> ImageSet:
        labels = torch.tensor([0] * 50 + [1] * 7 + [2] * 20)
        pixels = torch.arange(77, dtype=torch.uint8).view(-1, 1, 1, 1).expand(77, 3, 4, 4).contiguous()
        groups = torch.arange(77) // 3 if self.grouped else None
        return ImageSet(pixels, labels, torch.arange(77), 3, split, groups)


@pytest.mark.parametrize("grouped", [False, True])
def test_each_class_is_drawn_equally_often(grouped: bool) -> None:
    whole, found = Unequal(grouped=grouped).load("train"), Balanced(data=Unequal(grouped=grouped)).load("train")
    assert found.labels.bincount().tolist() == [50, 50, 50]
    assert len(found.ids.unique()) == 150
    row = found.images[:, 0, 0, 0].long()  # which image it is
    assert torch.equal(whole.labels[row], found.labels)
    times = row.bincount(minlength=77)
    for c in range(3):
        of_class = times[whole.labels == c]
        assert int(of_class.max() - of_class.min()) <= 1
    assert found.groups is not None
    assert torch.equal(found.groups, whole.groups[row] if whole.groups is not None else row)
    train, fit, val = split_clean(found, 0.2)
    inside = [set(part.images[:, 0, 0, 0].tolist()) for part in (train, fit, val)]
    assert not inside[0] & (inside[1] | inside[2]), "no repeat is on the other side of the split"


def test_the_test_images_do_not_change() -> None:
    assert Balanced(data=Unequal()).load("test").digest == Unequal().load("test").digest
    orders = {Balanced(data=Unequal(), seed=s).load("train").digest for s in (0, 1, 0)}
    assert len(orders) == 2


def test_files_in_a_folder_of_the_data_folder_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "more").mkdir()
    for split in ("train", "test"):
        rows = {"image": [{"bytes": png(i), "path": None} for i in range(4)], "label": [0, 1, 0, 1]}
        pq.write_table(pa.table(rows), tmp_path / "more" / f"cells-{split}-00000-of-00001.parquet")
    monkeypatch.setenv("SIEGEBENCH_DATA", str(tmp_path))
    source = registry.build(DataSource, {"name": "parquet", "prefix": "cells", "num_classes": 2})
    assert len(source.load("test")) == 4
    assert source.known_splits() == ("train", "test")


def test_the_medical_sets_have_their_published_counts() -> None:
    kit.data_folder()
    for name, train, test in (("pneumoniamnist", [1349, 3883], [234, 390]), ("bccd", [3348, 301, 292], [805, 71, 69])):
        source = registry.build(DataSource, name)
        assert source.scan("train").labels.bincount().tolist() == train
        assert source.scan("test").labels.bincount().tolist() == test
