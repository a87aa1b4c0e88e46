"""Published data sets in the layout that users have on disk, as small files of the same form."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from siegebench import registry
from siegebench.data import GREY, IMAGE, ImageSet
from siegebench.errors import DataError
from siegebench.types import DataSource

Array = np.ndarray[Any, Any]


def source(name: str, folder: Path, **more: Any) -> DataSource:
    return registry.build(DataSource, {"name": name, "folder": str(folder), **more})


def load(name: str, folder: Path, split: str, **more: Any) -> ImageSet:
    return source(name, folder, **more).load(split)


def noise(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


# --------------------------------------------------------------------------------------------------------- torchvision


def idx(path: Path, array: Array) -> None:
    """The format of MNIST: two zeros, the type, the number of dimensions, the dimensions, the numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(head + array.tobytes())


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_mnist_has_one_channel(name: str, folder: str, tmp_path: Path) -> None:
    images, labels = noise(3, 28, 28), np.array([9, 0, 3], np.uint8)
    for split, part in (("train", slice(0, 2)), ("t10k", slice(2, 3))):
        idx(tmp_path / folder / "raw" / f"{split}-images-idx3-ubyte", images[part])
        idx(tmp_path / folder / "raw" / f"{split}-labels-idx1-ubyte", labels[part])
    train, test = load(name, tmp_path, "train"), load(name, tmp_path, "test")
    assert torch.equal(train.images, torch.from_numpy(images[:2])[:, None])
    assert (train.labels.tolist(), test.labels.tolist(), train.num_classes, train.kind) == ([9, 0], [3], 10, GREY)
    assert train.classes is not None
    wide = load(name, tmp_path, "train", channels=3)
    assert (wide.kind, torch.equal(wide.images, train.images.expand(-1, 3, -1, -1))) == (IMAGE, True)
    with pytest.raises(DataError, match="has the splits train and test, not 'val'"):
        load(name, tmp_path, "val")
    (tmp_path / folder / "raw" / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03")
    with pytest.raises(DataError, match="not found or damaged"):
        load(name, tmp_path, "train")


def test_svhn_has_three_splits_and_the_digit_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import SVHN

    images = noise(4, 32, 32, 3)
    known = {}
    for i, split in enumerate(("train", "test", "extra")):
        path = tmp_path / f"{split}_32x32.mat"
        savemat(path, {"X": images[i : i + 2].transpose(1, 2, 3, 0), "y": np.array([[10], [i + 1]], np.uint8)})
        known[split] = ["", path.name, md5(path)]
    with pytest.raises(DataError, match="SVHN train: not found or damaged"):  # torchvision asks for the published md5
        load("svhn", tmp_path, "train")
    monkeypatch.setattr(SVHN, "split_list", known)
    for i, split in enumerate(("train", "test", "extra")):
        data = load("svhn", tmp_path, split)
        assert data.labels.tolist() == [0, i + 1]
        assert torch.equal(data.images, torch.from_numpy(images[i : i + 2]).permute(0, 3, 1, 2))
    with pytest.raises(DataError, match="SVHN has the splits train, test and extra, not 'val'"):
        load("svhn", tmp_path, "val")


def test_stl10_does_without_its_unlabelled_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import STL10

    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    images = noise(3, 3, 96, 96)
    lists = {}
    for split, part, labels in (("train", slice(0, 2), [1, 10]), ("test", slice(2, 3), [5])):
        images[part].transpose(0, 1, 3, 2).tofile(folder / f"{split}_X.bin")  # column-major
        np.array(labels, np.uint8).tofile(folder / f"{split}_y.bin")
        lists[split] = [[file.name, md5(file)] for file in sorted(folder.glob(f"{split}_*"))]
    (folder / "class_names.txt").write_text("\n".join("abcdefghij"))
    monkeypatch.setattr(STL10, "train_list", [*lists["train"], ["unlabeled_X.bin", "0" * 32]])
    monkeypatch.setattr(STL10, "test_list", lists["test"])
    train, test = load("stl10", tmp_path, "train"), load("stl10", tmp_path, "test")
    assert torch.equal(train.images, torch.from_numpy(images[:2]))
    assert (train.labels.tolist(), test.labels.tolist(), train.classes) == ([0, 9], [4], tuple("abcdefghij"))


def test_colour_sets_can_be_read_as_grey(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    class Fake:
        def __init__(self, root: str, train: bool, download: bool) -> None:
            self.data, self.targets = noise(2, 32, 32, 3), [0, 1]

    monkeypatch.setattr(datasets, "CIFAR10", Fake)
    expected = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in noise(2, 32, 32, 3)])
    found = load("cifar10", tmp_path, "train", channels=1)
    assert torch.equal(found.images[:, 0], torch.from_numpy(expected))
    assert found.kind == GREY


# ------------------------------------------------------------------------------------------------------------ imagenet


def jpeg(path: Path, level: int, size: int = 64) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), (level, level, level)).save(path)


def levels(data: ImageSet) -> list[int]:
    return data.images[:, 0, 0, 0].tolist()


def test_imagenet_is_evaluated_on_its_validation_set(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for level, synset in enumerate(("n02", "n01")):
            jpeg(tmp_path / split / synset / "a.JPEG", level, 300)
    data = load("imagenet", tmp_path, "test")
    assert (levels(data), data.labels.tolist(), data.classes) == ([1, 0], [0, 1], ("n01", "n02"))
    assert data.shape == (3, 224, 224)
    assert load("imagenet", tmp_path, "val").digest == data.digest
    with pytest.raises(DataError, match=r"imagenet test: there is no folder .*SIEGEBENCH_DATA"):
        load("imagenet", tmp_path / "none", "test")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny-imagenet-200"
    folder.mkdir()
    (folder / "wnids.txt").write_text("n9\nn2\nn10\n")
    lines = []
    for level, name in enumerate(("n2", "n9", "n10")):
        jpeg(folder / "train" / name / "images" / f"{name}_0.JPEG", level)
        (folder / "train" / name / f"{name}_boxes.txt").write_text("x")
        jpeg(folder / "val" / "images" / f"val_{2 - level}.JPEG", level)
        lines.append(f"val_{2 - level}.JPEG\t{name}\t0\t0\t9\t9\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    return folder


def test_tiny_imagenet_in_the_layout_of_its_archive(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = load("tiny_imagenet", tiny, "train"), load("tiny_imagenet", tiny, "test")
    assert train.classes == test.classes == ("n9", "n2", "n10")
    assert dict(zip(levels(train), train.labels.tolist(), strict=True)) == {0: 1, 1: 0, 2: 2}
    assert dict(zip(levels(test), test.labels.tolist(), strict=True)) == {0: 1, 1: 0, 2: 2}
    ordered = load("tiny_imagenet", tiny, "val", order="sorted")
    assert ordered.classes == ("n10", "n2", "n9")
    assert dict(zip(levels(ordered), ordered.labels.tolist(), strict=True)) == {0: 1, 1: 2, 2: 0}
    monkeypatch.setenv("SIEGEBENCH_DATA", str(tiny.parent))
    assert registry.build(DataSource, "tiny_imagenet").load("test").digest == test.digest


def test_tiny_imagenet_with_sorted_validation_folders(tiny: Path) -> None:
    (tiny / "val" / "val_annotations.txt").unlink()
    jpeg(tiny / "val" / "n2" / "images" / "x.JPEG", 7)
    data = load("tiny_imagenet", tiny, "val")
    assert (levels(data), data.labels.tolist(), data.num_classes) == ([7], [1], 3)


def test_tiny_imagenet_says_what_is_missing(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tiny_imagenet: no .*wnids\.txt; unpack tiny-imagenet-200\.zip"):
        load("tiny_imagenet", tmp_path, "test")
    (tiny / "val" / "images" / "val_0.JPEG").unlink()
    with pytest.raises(DataError, match=r"val_0\.JPEG: cannot be read"):
        load("tiny_imagenet", tiny, "test")
    (tiny / "wnids.txt").write_text("n9\nn2\n")
    with pytest.raises(DataError, match="the class 'n10' is not in"):
        load("tiny_imagenet", tiny, "test")
