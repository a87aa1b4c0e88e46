"""Data sets: the pixels that were put in, in their order, or an error that says what to type."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from siegebench import registry
from siegebench.data import GREY, IMAGE, ImageSet, split_clean, stratified
from siegebench.errors import ConfigError, DataError
from tests.kit import data_folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "real" not in request.fixturenames:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.delenv("SIEGEBENCH_DATA", raising=False)


@pytest.fixture
def real() -> Path:
    return data_folder()


def load(spec: Any, split: str = "train") -> ImageSet:
    return registry.build("dataset", spec).load(split)  # type: ignore[attr-defined]


def pixels(n: int, height: int = 6, width: int = 6, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def png(image: np.ndarray[Any, Any]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


def write(
    path: Path,
    images: Any,
    labels: list[int | None],
    paths: list[str] | None = None,
    names: tuple[str, str] = ("image", "label"),
) -> None:
    blobs = [image if isinstance(image, bytes) or image is None else png(image) for image in images]
    paths = paths or [f"{i}.png" for i in range(len(blobs))]
    structs = [{"bytes": b, "path": p} for b, p in zip(blobs, paths, strict=True)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({names[0]: pa.array(structs, kind), names[1]: pa.array(labels, pa.int64())}), path)


def spec(folder: Path, **more: Any) -> dict[str, Any]:
    return {"name": "parquet", "folder": str(folder), "prefix": "toy", "num_classes": 3, **more}


# ------------------------------------------------------------------------------------------------------------- digits


def test_digits_split_is_fixed_complete_and_stratified() -> None:
    train, test = load("digits", "train"), load("digits", "test")
    assert (len(train), len(test)) == (1297, 500)
    assert tuple(train.images.shape[1:]) == (3, 32, 32)
    assert sorted([*train.ids.tolist(), *test.ids.tolist()]) == list(range(1797))
    counts = test.labels.bincount(minlength=10)
    assert 48 <= counts.min() <= counts.max() <= 52
    assert load("digits", "test").digest == test.digest
    assert test.images.amax() == 255
    assert torch.equal(test.images[:, 0], test.images[:, 2])  # grey


def test_unknown_split_is_refused() -> None:
    with pytest.raises(DataError, match="train and test, not 'validation'"):
        load("digits", "validation")


# ------------------------------------------------------------------------------------------------------------ parquet


def test_parquet_gives_back_pixels_labels_and_order_over_shards(tmp_path: Path) -> None:
    images, labels = pixels(7), [0, 1, 2, 0, 1, 2, 0]
    write(tmp_path / "toy-train-00000-of-00002.parquet", images[:4], labels[:4])
    write(tmp_path / "toy-train-00001-of-00002.parquet", images[4:], labels[4:])
    for _ in range(2):  # decoded, then from the cache
        found = load(spec(tmp_path))
        assert torch.equal(found.images, torch.from_numpy(images).permute(0, 3, 1, 2))
        assert found.labels.tolist() == labels
        assert found.ids.tolist() == list(range(7))
        assert found.groups is None


def test_parquet_finds_its_folder_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "train-00000-of-00001.parquet", pixels(2), [0, 1])
    monkeypatch.setenv("SIEGEBENCH_DATA", str(tmp_path))
    assert len(load({"name": "parquet", "num_classes": 2})) == 2


def test_other_column_names_bare_bytes_and_small_integers(tmp_path: Path) -> None:
    images = pixels(3)
    table = {"img": pa.array([png(i) for i in images]), "fine_label": pa.array([2, 1, 0], pa.int16())}
    pq.write_table(pa.table(table), tmp_path / "toy-test-0.parquet")
    found = load(spec(tmp_path, image="img", label="fine_label"), "test")
    assert found.labels.tolist() == [2, 1, 0]
    assert torch.equal(found.images[1], torch.from_numpy(images[1]).permute(2, 0, 1))


def test_frames_of_a_track_form_a_group(tmp_path: Path) -> None:
    paths = ["00001/00000_00000.ppm", "00002/00000_00000.ppm", "00001/00000_00029.ppm", "00001/00001_00000.ppm"]
    write(tmp_path / "toy-train-0.parquet", pixels(4), [1, 2, 1, 1], paths)
    write(tmp_path / "toy-test-0.parquet", pixels(2), [1, 2], ["00000.ppm", "00001.ppm"])
    groups = load(spec(tmp_path, group_by_path=True)).groups
    assert groups is not None
    assert groups[0] == groups[2]
    assert len(set(groups.tolist())) == 3
    assert load(spec(tmp_path, group_by_path=True), "test").groups is None


def test_class_names_and_splits_of_parquet_files(tmp_path: Path) -> None:
    write(tmp_path / "toy-train-0.parquet", pixels(3), [0, 1, 2])
    assert load(spec(tmp_path)).classes is None
    feature = {"image": {"_type": "Image"}, "label": {"names": ["ant", "bee", "cat"], "_type": "ClassLabel"}}
    table = pq.read_table(tmp_path / "toy-train-0.parquet")
    said = {"huggingface": json.dumps({"info": {"features": feature}})}
    pq.write_table(table.replace_schema_metadata(said), tmp_path / "toy-validation-0.parquet")
    assert load(spec(tmp_path), "validation").classes == ("ant", "bee", "cat")
    assert load(spec(tmp_path, num_classes=4), "validation").classes is None
    with pytest.raises(DataError, match=r"no toy-test-\*\.parquet in .*; it has the splits train, validation;"):
        load(spec(tmp_path), "test")


def test_grey_images_have_one_channel(tmp_path: Path) -> None:
    images = pixels(3)
    images[:] = images[..., :1]
    write(tmp_path / "toy-train-0.parquet", images, [0, 1, 2])
    for _ in range(2):  # decoded, then from the cache
        found = load(spec(tmp_path, channels=1))
        assert (found.kind, found.kind.channels) == (GREY, 1)
        assert torch.equal(found.images, torch.from_numpy(images[..., :1]).permute(0, 3, 1, 2))
        assert load(spec(tmp_path)).kind == IMAGE


def test_sizes_are_brought_to_one(tmp_path: Path) -> None:
    wide = np.zeros((6, 12, 3), dtype=np.uint8)
    wide[:, 3:9] = 255  # white in the middle square, black left and right of it
    write(tmp_path / "toy-train-0.parquet", [wide, pixels(1)[0]], [0, 1])
    with pytest.raises(DataError, match=r"images of 12x6 and 6x6 pixels; resize them to one size with `size: N`"):
        load(spec(tmp_path))
    crop, stretch = load(spec(tmp_path, size=6)), load(spec(tmp_path, size=6, fit="stretch"))
    assert crop.images[0].amin() == 255
    assert stretch.images[0, :, :, 0].amax() == 0
    assert torch.equal(crop.images[1], stretch.images[1])


def test_decoded_pixels_come_from_the_cache_and_a_damaged_cache_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from siegebench.zoo import _images

    write(tmp_path / "toy-train-0.parquet", pixels(5), [0, 1, 2, 0, 1])
    first = load(spec(tmp_path))
    calls = []
    decode = _images.decode
    monkeypatch.setattr(_images, "decode", lambda *a, **k: (calls.append(1), decode(*a, **k))[1])
    assert load(spec(tmp_path)).digest == first.digest
    assert not calls
    (cached,) = (tmp_path / "cache").rglob("*.safetensors")
    cached.write_bytes(cached.read_bytes()[:40])
    assert load(spec(tmp_path)).digest == first.digest
    assert calls
    write(tmp_path / "toy-train-0.parquet", pixels(5, seed=9), [0, 1, 2, 0, 1])  # other content, other cache file
    assert load(spec(tmp_path)).digest != first.digest


def test_a_cache_that_cannot_be_written_only_costs_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    write(tmp_path / "toy-train-0.parquet", pixels(2), [0, 1])
    assert len(load(spec(tmp_path))) == 2


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


@pytest.mark.parametrize(
    ("make", "more", "message"),
    [
        (lambda f: write(f, pixels(4), [0, 1, 2, 3]), {}, r"label 3 is outside 0\.\.2"),
        (lambda f: write(f, pixels(2), [0, None]), {}, r"toy-train-0\.parquet: 1 rows have no label"),
        (lambda f: write(f, [], []), {}, r"toy-train-0\.parquet: contains no rows"),
        (lambda f: write(f, [png(pixels(1)[0]), b"no image"], [0, 1]), {}, "row 1: not a readable image"),
        (lambda f: write(f, [png(pixels(1, 50, 50)[0])[:-900]], [0]), {}, "row 0: not a readable image"),
        (lambda f: write(f, [None, png(pixels(1)[0])], [0, 1]), {}, "row 0 has no image"),
        (lambda f: write(f, pixels(2), [0, 1]), {"image": "img"}, "no column 'img'; it has image, label"),
        (lambda f: write(f, pixels(2), [0, 1]), {"image": "label"}, "column 'label' is int64, expected encoded images"),
        (lambda f: write(f, pixels(2), [0, 1]), {"label": "image"}, "column 'image' is struct.*expected integers"),
        (lambda f: (write(f, pixels(2), [0, 1]), damage(f)), {}, "not a readable parquet file"),
        (lambda f: f.write_bytes(b""), {}, "not a readable parquet file"),
        (lambda f: write(f.with_name("toy-train-00000-of-00002.parquet"), pixels(2), [0, 1]), {}, "of-00002"),
        (lambda f: None, {}, r"no toy-train-\*\.parquet in .*SIEGEBENCH_DATA=FOLDER"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_the_files_is_said(
    tmp_path: Path, make: Callable[[Path], object], more: dict[str, Any], message: str
) -> None:
    make(tmp_path / "toy-train-0.parquet")
    with pytest.raises(DataError, match=message):
        load(spec(tmp_path, **more))


def test_missing_folder_says_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"gtsrb32 test: no folder to look in for gtsrb32-test-.*SIEGEBENCH_DATA=FOLDER"
    ):
        load("gtsrb", "test")
    with pytest.raises(DataError, match=r"there is no folder .*nowhere"):
        load(spec(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="needs the parameter 'num_classes'"):
        load("parquet")


# ------------------------------------------------------------------------------------------ folders, torchvision, hub


def test_image_folder_numbers_classes_over_all_splits(tmp_path: Path) -> None:
    images = pixels(4)
    for i, place in enumerate(["train/cat/a.png", "train/dog/b.png", "train/ant/c.png", "test/dog/d.png"]):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(png(images[i]))
    (tmp_path / "train/cat/notes.txt").write_text("not an image")
    train = load({"name": "image_folder", "folder": str(tmp_path)})
    test = load({"name": "image_folder", "folder": str(tmp_path)}, "test")
    assert train.labels.tolist() == [0, 1, 2]
    assert torch.equal(train.images[0], torch.from_numpy(images[2]).permute(2, 0, 1))
    assert (test.labels.tolist(), test.num_classes) == ([2], 3)
    with pytest.raises(DataError, match=r"expected FOLDER/val/CLASS/IMAGE"):
        load({"name": "image_folder", "folder": str(tmp_path)}, "val")
    (tmp_path / "train/cat/a.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"cat/a\.png: not a readable image"):
        load({"name": "image_folder", "folder": str(tmp_path)})


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "gtsrb_original"])
def test_torchvision_sets_that_are_missing_say_what_to_type(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not found or damaged in .*download: true.*folder: FOLDER"):
        load({"name": name, "folder": str(tmp_path)}, "test")


def test_cifar_arrays_keep_their_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    images = pixels(3, 32, 32)

    class Fake:
        def __init__(self, root: str, train: bool, download: bool) -> None:
            self.data, self.targets = images, [9, 0, 3] if train else [1, 1, 1]

    monkeypatch.setattr(datasets, "CIFAR10", Fake)
    found = load("cifar10", "train")
    assert torch.equal(found.images, torch.from_numpy(images).permute(0, 3, 1, 2))
    assert (found.labels.tolist(), found.num_classes) == ([9, 0, 3], 10)
    assert load("cifar10", "test").labels.tolist() == [1, 1, 1]


def test_gtsrb_in_torchvision_layout(tmp_path: Path) -> None:
    for place in ("00000/00000_00000", "00000/00000_00001", "00042/00000_00000"):
        file = tmp_path / "gtsrb" / "GTSRB" / "Training" / f"{place}.ppm"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(1, 40, 30)[0]).save(file)
    found = load({"name": "gtsrb_original", "folder": str(tmp_path)})
    assert found.labels.tolist() == [0, 0, 42]
    assert tuple(found.images.shape) == (3, 3, 32, 32)
    assert found.groups is not None
    assert found.groups[0] == found.groups[1] != found.groups[2]


def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the hub's client as a download of the data set someone/toy leaves it."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repo = tmp_path / "hub" / "datasets--someone--toy"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    return repo / "snapshots" / ("0" * 40)


def test_hub_data_is_read_from_the_cache_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = hub_cache(tmp_path, monkeypatch)
    write(snapshot / "plain_text" / "train-00000-of-00001.parquet", pixels(3), [0, 1, 2], names=("img", "label"))
    toy = {"name": "hub", "dataset": "someone/toy", "num_classes": 3, "image": "img"}
    found = load(toy)
    assert found.labels.tolist() == [0, 1, 2]
    assert load({**toy, "config": "plain_text"}).digest == found.digest
    write(snapshot / "other" / "train-00000-of-00001.parquet", pixels(3), [0, 1, 2], names=("img", "label"))
    with pytest.raises(DataError, match="set `config` to one of other, plain_text"):
        load(toy)


def test_hub_data_that_is_not_at_hand_fails_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = hub_cache(tmp_path, monkeypatch)
    write(snapshot / "data" / "train-00000-of-00002.parquet", pixels(3), [0, 1, 2])  # half of a download
    start = time.monotonic()
    with pytest.raises(DataError, match="not in the hub's cache and could not be fetched"):
        load({"name": "hub", "dataset": "someone/toy", "num_classes": 3})
    assert time.monotonic() - start < 30  # the hub's own client tries for most of a minute
    with pytest.raises(DataError, match="not the name of a data set"):
        load({"name": "hub", "dataset": "one/two/three", "num_classes": 3})


def test_places_do_not_enter_a_key(tmp_path: Path) -> None:
    here, there = (registry.describe("dataset", spec(tmp_path / place)) for place in "ab")
    assert here == there
    assert "folder" not in here


# -------------------------------------------------------------------------------------------------------- stored lists


def drawn(name: str, count: int) -> None:
    from tests import subsets

    assert count in subsets.STORED[name]
    data = load(name, "test")
    subsets.check(name, count, data)
    ids = data.ids[stratified(data, count, 0)].tolist()
    assert ids == subsets.stored(name, count)
    assert len(set(ids)) == count


@pytest.mark.parametrize("count", [100, 200])
def test_stored_lists_of_digits_are_what_is_drawn(count: int) -> None:
    drawn("digits", count)


@pytest.mark.usefixtures("real")
@pytest.mark.parametrize(
    ("name", "count"), [("cifar10_jpeg", 200), ("cifar10_jpeg", 500), ("cifar10_jpeg", 1000), ("gtsrb", 500)]
)
def test_stored_lists_are_what_is_drawn(name: str, count: int) -> None:
    drawn(name, count)


def test_lists_belong_to_their_labels() -> None:
    from tests import subsets

    assert subsets.stored("digits", 123) is None
    test = load("digits", "test")
    with pytest.raises(DataError, match="not those that digits_100"):
        subsets.check("digits", 100, test.select(torch.arange(499)))


# ----------------------------------------------------------------------------------------------------------- real data


@pytest.mark.usefixtures("real")
def test_gtsrb_is_complete_and_its_tracks_stay_together() -> None:
    data_folder()
    train, test = load("gtsrb", "train"), load("gtsrb", "test")
    assert (len(train), len(test), train.num_classes) == (39209, 12630, 43)
    assert train.labels.bincount()[[0, 1, 2, 42]].tolist() == [210, 2220, 2250, 240]
    assert train.groups is not None
    assert test.groups is None
    assert int(train.groups.bincount().max()) == 30  # frames of a track
    # a track shows one sign
    first = torch.zeros(int(train.groups.max()) + 1, dtype=torch.long).scatter(0, train.groups, train.labels)
    assert torch.equal(first[train.groups], train.labels)
    kept, fit, val = split_clean(train)
    budget = {*fit.groups.tolist(), *val.groups.tolist()}  # type: ignore[union-attr]
    assert not budget & set(kept.groups.tolist())  # type: ignore[union-attr]


@pytest.mark.usefixtures("real")
def test_cifar10_jpeg_is_complete_and_balanced() -> None:
    data_folder()
    train, test = load("cifar10_jpeg", "train"), load("cifar10_jpeg", "test")
    assert train.labels.bincount().tolist() == [5000] * 10
    assert test.labels.bincount().tolist() == [1000] * 10
    assert tuple(test.images.shape[1:]) == (3, 32, 32)
