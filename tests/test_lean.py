"""Large data sets: only the slice that is asked for is read, and nothing lies in memory twice."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from siegebench.zoo._images import Encoded
from torch import Tensor

from siegebench import registry
from siegebench.data import ImageSet, split_clean, stratified, subset
from siegebench.errors import DataError
from siegebench.rows import Rows
from siegebench.types import DataSource
from tests import runs, victims
from tests.kit import data_folder

SIDE = 224
MEASURED = """
import json, sys
import torch, torchvision, timm, pyarrow.parquet, PIL.Image
from siegebench import registry
from siegebench.data import split_clean, subset
from tests import victims

def memory(line):
    text = open("/proc/self/status").read()
    return int(text.split(line + ":")[1].split()[0]) / 1024

spec, count = json.loads(sys.argv[1]), int(sys.argv[2])
source, attack = registry.build("dataset", spec), victims.backdoor("badnets", rate=0.1)
torch.randn(64, 64) @ torch.randn(64, 64)
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
start = memory("VmRSS")
if count:
    data = subset(source.scan("train"), count)
    data.digest
else:
    data = source.load("train")
    data.digest
    train, fit, val = split_clean(data)
    poisoned = attack.poison(train, 0).data
    poisoned.digest
    train.pixels(torch.arange(0, 3072, 24))
print(json.dumps({"grown": memory("VmHWM") - start, "size": len(data) * 3 * 224 * 224 / 2**20}))
"""


def source(spec: Any) -> DataSource:
    built = registry.build("dataset", spec)
    assert isinstance(built, DataSource)
    return built


def jpeg(seed: int, side: int = SIDE) -> bytes:
    out = io.BytesIO()
    coarse = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((side, side), Image.Resampling.BILINEAR).save(out, "JPEG", quality=90)
    return out.getvalue()


def parquet(folder: Path, count: int, side: int = SIDE, shards: int = 2, group: int = 500) -> dict[str, Any]:
    """A spec of a training split of that many images in ten classes; there are 50 different ones."""
    blobs = [jpeg(i, side) for i in range(50)]
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(shards):
        rows = range(k * count // shards, (k + 1) * count // shards)
        images = pa.array([{"bytes": blobs[i % 50], "path": f"{i}.jpg"} for i in rows])
        table = pa.table({"image": images, "label": pa.array([i % 10 for i in rows])})
        pq.write_table(table, folder / f"train-{k:05}-of-{shards:05}.parquet", row_group_size=group)
    return {"name": "parquet", "folder": str(folder), "num_classes": 10}


def folder(root: Path, count: int, side: int = SIDE) -> dict[str, Any]:
    """The same as files of a folder."""
    for i in range(count):
        file = root / "train" / f"class{i % 10}" / f"{i:06}.jpg"
        if i < 50:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(jpeg(i, side))
        else:
            os.link(root / "train" / f"class{i % 10}" / f"{i % 50:06}.jpg", file)
    return {"name": "image_folder", "folder": str(root)}


# ------------------------------------------------------------------------------------------------------------ the rows


class Counting(Encoded):
    """Says which rows it was asked for."""

    def __init__(self, images: Tensor) -> None:
        def blobs(rows: Any) -> Any:
            self.__dict__.setdefault("asked", []).append(list(rows))
            for i in rows:
                out = io.BytesIO()
                Image.fromarray(images[i].permute(1, 2, 0).numpy()).save(out, "PNG")
                yield f"image {i}", out.getvalue()

        super().__init__(len(images), blobs, "counted")


def random_images(n: int, height: int = 5, width: int = 7, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, height, width), generator=g, dtype=torch.uint8)


@pytest.mark.parametrize("encoded", [False, True])
@pytest.mark.parametrize("cuts", [(12,), (5, 12), (1, 2, 11, 12)])
def test_rows_answer_as_one_tensor_does(cuts: tuple[int, ...], encoded: bool) -> None:
    whole = random_images(12)
    parts = [whole[a:b] for a, b in zip((0, *cuts), cuts, strict=False)]
    rows = Rows(*(Counting(part) if encoded and i % 2 == 0 else part for i, part in enumerate(parts)))
    assert rows.encoded == encoded
    assert rows.shape == whole.shape
    index = torch.tensor([11, 0, 5, 5, 4, 1])
    for at in (slice(None), slice(3, 9), slice(None, None, 5), index, whole[:, 0, 0, 0] > 100, torch.tensor([-1, 2])):
        assert torch.equal(rows[at], whole[at])
        assert torch.equal(rows.select(at)[:], whole[at])
    assert torch.equal(rows.select(index).select(torch.tensor([5, 0]))[:], whole[torch.tensor([1, 11])])
    other = random_images(2, seed=1)
    changed, expected = rows.select(index).replaced(torch.tensor([0, 4]), other), whole[index]
    expected[torch.tensor([0, 4])] = other
    assert torch.equal(changed[:], expected)
    assert torch.equal(torch.cat(list(changed.pieces())), expected)
    assert torch.equal(rows[:], whole)
    kept = changed.in_memory()
    assert not kept.encoded
    assert torch.equal(kept[:], expected)
    assert torch.equal(rows.in_memory()[:], whole)


def test_pieces_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("siegebench.rows.CHUNK", 3 * 5 * 7 * 4)
    whole = random_images(10)
    for rows in (Rows(whole), Rows(whole[:3], whole[3:]), Rows(whole).select(torch.arange(10))):
        assert [len(piece) for piece in rows.pieces()] == [4, 4, 2]
        assert torch.equal(torch.cat(list(rows.pieces())), whole)
        assert torch.equal(rows[torch.arange(9, -1, -1)], whole.flip(0))


def test_parts_of_other_sizes_are_refused() -> None:
    with pytest.raises(DataError, match="images of 7x5 and 6x5 pixels; resize them to one size"):
        Rows(random_images(2), random_images(2, 5, 6))
    late = Rows(Counting(random_images(2)), Counting(random_images(2, 5, 6)))
    for read in (lambda: late[:], late.in_memory):
        with pytest.raises(DataError, match="images of 7x5 and 6x5 pixels; resize them to one size"):
            read()


def test_sets_share_their_images() -> None:
    images = random_images(40)
    data = ImageSet(images, torch.arange(40) % 4, torch.arange(40), 4, "toy")
    assert data.images.data_ptr() == images.data_ptr()
    train, fit, val = split_clean(data, 0.2)
    poisoned = victims.backdoor("badnets", rate=0.1, side=2).poison(train, 0)
    for part in (train, fit, val, poisoned.data):
        assert part.stored.parts[0] is images
    assert poisoned.data.stored.parts[1].shape[0] == len(poisoned.index) == 3
    assert torch.equal(data.images, random_images(40))


# ----------------------------------------------------------------------------------------------------- slices of splits


def same(lean: ImageSet, whole: ImageSet) -> None:
    assert lean.digest == whole.digest
    assert torch.equal(lean.ids, whole.ids)
    assert torch.equal(lean.labels, whole.labels)
    assert torch.equal(lean.images, whole.images)
    assert lean.shape == whole.shape
    assert (lean.groups is None) == (whole.groups is None)
    assert lean.groups is None or torch.equal(lean.groups, whole.groups)  # type: ignore[arg-type]


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("name", ["digits", "cifar10_jpeg", "gtsrb"])
def test_a_slice_is_what_the_whole_split_gives(
    name: str, cached: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name != "digits":
        data_folder()
    if not cached:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # so that images are decoded
    lean = {count: subset(source(name).scan("test"), count) for count in (100, 450)}
    if not cached:
        assert not list(tmp_path.rglob("*.safetensors"))
    whole = source(name).load("test")
    assert source(name).scan("test").in_memory().digest == whole.digest == subset(whole, len(whole)).digest
    for count, part in lean.items():
        same(part, whole.select(stratified(whole, count, 0)))


@pytest.mark.parametrize("make", [parquet, folder])
def test_only_the_rows_of_a_slice_are_decoded(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from siegebench.zoo import _images

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    spec = make(tmp_path / "data", 200, 16)
    names: list[str] = []
    decode = _images.decode

    def noting(blobs: Any, *args: Any) -> Any:
        return decode((names.append(name) or (name, blob) for name, blob in blobs), *args)  # type: ignore[func-returns-value]

    monkeypatch.setattr(_images, "decode", noting)
    whole = source(spec).scan("train")
    assert (len(whole), names) == (200, [])
    part = subset(whole, 20)
    assert part.labels.bincount().tolist() == [2] * 10
    assert len(names) <= 20 + 2  # and the first of each part, for its size
    names.clear()
    assert len(part.digest) == 64
    assert names == []
    everything = source(spec).load("train")
    same(part, everything.select(part.ids))


def test_corrupt_images_are_found_where_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    spec = folder(tmp_path / "data", 40, 8)
    (tmp_path / "data" / "train" / "class3" / "000013.jpg").write_bytes(b"broken")
    whole = source(spec).scan("train")
    with pytest.raises(DataError, match=r"000013\.jpg: not a readable image"):
        whole.in_memory()
    with pytest.raises(DataError, match=r"000013\.jpg: not a readable image"):
        source(spec).load("train")
    files = sorted((tmp_path / "data" / "train").rglob("*.jpg"))
    fine = torch.tensor([i for i, file in enumerate(files) if file.name != "000013.jpg"])
    assert len(whole.select(fine).in_memory()) == 39


def test_sources_that_only_know_everything_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from siegebench.config import load_suite
    from siegebench.plan import plan

    with runs.known(tmp_path / "site", monkeypatch):
        path = runs.suite(tmp_path / "suite.yaml", runs.board(), runs.board(attacks=["outsider/step"]),
                          data={"set": "outsider/planted", "count": 40})  # fmt: skip
        built = registry.entry_class("dataset", "outsider/planted")
        calls: list[str] = []
        load = built.load  # type: ignore[attr-defined]
        monkeypatch.setattr(built, "load", lambda self, split: (calls.append(split), load(self, split))[1])
        planned = plan(load_suite(str(path)))
        assert sorted(calls) == ["test", "train"]
        assert {c.data["count"] for c in planned.cells} == {40}
        expected = source("outsider/planted").load("test")
        digest = expected.select(stratified(expected, 40, 0)).digest
        assert {c.data["digest"] for c in planned.cells} == {digest}


# -------------------------------------------------------------------------------------------------------------- memory


def measured(spec: dict[str, Any], count: int, cache: Path) -> tuple[float, float]:
    """(MiB by which a process grew, MiB of the images that it was left with)"""
    env = {**os.environ, "XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(runs.ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, json.dumps(spec), str(count)],
        cwd=runs.ROOT, env=env, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return found["grown"], found["size"]


@pytest.mark.slow
@pytest.mark.parametrize("make", [parquet, folder])
def test_large_sets_are_not_held_twice(make: Any, tmp_path: Path) -> None:
    """8,000 images of 224 pixels, 1.1 GiB: loaded, split, poisoned and hashed in less than 1.35 times their size."""
    spec = make(tmp_path / "data", 8000)
    grown, size = measured(spec, 64, tmp_path / "cache")
    assert size == pytest.approx(64 * 3 * SIDE * SIDE / 2**20)
    assert grown < 100
    for _ in range(2):  # decoded, then from the cache where there is one
        grown, size = measured(spec, 0, tmp_path / "cache")
        assert size > 1100
        assert grown < 1.35 * size
