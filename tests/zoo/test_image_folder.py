"""Folders of images: which folders are classes, which label each has, which splits there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from siegebench.zoo.image_folder import natural

from siegebench import registry
from siegebench.data import GREY, ImageSet
from siegebench.errors import ConfigError, DataError
from siegebench.types import DataSource


def put(folder: Path, *places: str) -> None:
    """A one-colour image at each place; the colour is the number in its name, if there is one."""
    for place in places:
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        digits = "".join(c for c in path.stem if c.isdigit())
        Image.fromarray(np.full((4, 4, 3), int(digits or 0), np.uint8)).save(path)


def source(folder: Path, **more: Any) -> DataSource:
    return registry.build(DataSource, {"name": "image_folder", "folder": str(folder), **more})


def load(folder: Path, split: str = "train", **more: Any) -> ImageSet:
    return source(folder, **more).load(split)


def colours(data: ImageSet) -> list[int]:
    return data.images[:, 0, 0, 0].tolist()


def test_classes_are_in_natural_order(tmp_path: Path) -> None:
    put(tmp_path, *(f"train/{c}/{c}.png" for c in range(12)), *(f"test/{c}/{c}.png" for c in (10, 2)))
    for split in ("train", "test"):
        data = load(tmp_path, split)
        assert colours(data) == data.labels.tolist()
        assert data.classes == tuple(map(str, range(12)))
    names = ["b", "A10", "a2", "a02b", "10", "9", "x1y10", "x1y9", "²"]
    assert sorted(names, key=natural) == ["9", "10", "a2", "a02b", "A10", "b", "x1y9", "x1y10", "²"]


def test_labels_are_those_of_timm(tmp_path: Path) -> None:
    from timm.data.readers.reader_image_folder import find_images_and_targets

    put(tmp_path, *(f"train/{name}/0.png" for name in ("n02", "N1", "a", "B", "cat 10", "cat 9", "07", "7b")))
    _, theirs = find_images_and_targets(str(tmp_path / "train"))
    ours = load(tmp_path).classes
    assert ours == tuple(sorted(theirs, key=theirs.__getitem__))


def test_folders_of_tools_are_no_classes_and_their_files_no_images(tmp_path: Path) -> None:
    put(tmp_path, "train/cat/1.png", "train/dog/deep/2.png")
    put(tmp_path, "train/.ipynb_checkpoints/9.png", "train/__MACOSX/cat/9.png", "train/dog/.ipynb_checkpoints/9.png")
    put(tmp_path, "train/cat/._1.png", ".hidden/cat/9.png", "__MACOSX/train/cat/9.png")
    (tmp_path / "train" / "empty").mkdir()
    (tmp_path / "train" / "cat" / "Thumbs.db").write_bytes(b"x")
    data = load(tmp_path)
    assert (colours(data), data.classes) == ([1, 2], ("cat", "dog"))
    assert source(tmp_path).known_splits() == ("train",)


def test_a_test_split_has_the_labels_of_the_training_split(tmp_path: Path) -> None:
    put(tmp_path, "train/a/0.png", "train/b/1.png", "train/c/2.png", "test/c/2.png")
    data = load(tmp_path, "test")
    assert (data.labels.tolist(), data.num_classes, data.classes) == ([2], 3, ("a", "b", "c"))
    put(tmp_path, "test/aa/9.png")
    with pytest.raises(DataError, match=r"test: the class folder 'aa' is not a class of .*train\. Did you mean a\?"):
        load(tmp_path, "test")


@pytest.mark.parametrize("given", [["b", "d", "a"], "names.txt", "{}/names.txt", None])
def test_classes_can_be_listed(tmp_path: Path, given: Any) -> None:
    put(tmp_path, "train/a/0.png", "train/b/1.png", "test/b/1.png")
    (tmp_path / ("classes.txt" if given is None else "names.txt")).write_text("\ufeffb\nd \na\n\n", encoding="utf-8")
    classes = given.format(tmp_path) if isinstance(given, str) else given
    train, test = (load(tmp_path, split, classes=classes) for split in ("train", "test"))
    assert train.labels.tolist() == [2, 0]
    assert test.labels.tolist() == [0]
    assert train.classes == test.classes == ("b", "d", "a")
    put(tmp_path, "train/e/3.png")
    with pytest.raises(DataError, match=r"the class folder 'e' is not in .*list all classes with `classes"):
        load(tmp_path, classes=classes)


def test_a_wrong_list_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "train/a/0.png", "train/b/1.png")
    with pytest.raises(DataError, match="class 1 is 'a'; expected a name that appears once"):
        load(tmp_path, classes=["a", "a"])
    with pytest.raises(DataError, match=r"classes: none\.txt cannot be read"):
        load(tmp_path, classes="none.txt")
    with pytest.raises(ConfigError, match="classes"):
        load(tmp_path, classes=[0, 1])
    (tmp_path / "classes.txt").write_text("a\n\nb\n")
    with pytest.raises(DataError, match=r"classes\.txt: class 1 is ''"):
        load(tmp_path)


def test_any_folder_is_a_split_and_splits_can_be_renamed(tmp_path: Path) -> None:
    put(tmp_path, "train/a/0.png", "train/b/1.png", "val/b/1.png", "notes/2.png")
    assert source(tmp_path).known_splits() == ("train", "val")
    assert load(tmp_path, "val").labels.tolist() == [1]
    with pytest.raises(DataError, match=r"no folder .*test;.* has the splits train, val; write `splits: {test: val}`"):
        load(tmp_path, "test")
    renamed = {"splits": {"test": "val"}}
    assert load(tmp_path, "test", **renamed).labels.tolist() == [1]
    assert source(tmp_path, **renamed).known_splits() == ("test", "train")
    assert load(tmp_path, "train", **renamed).labels.tolist() == [0, 1]
    for odd in ("..", ".", "", "train/a", str(tmp_path)):
        with pytest.raises(DataError, match="there is no folder"):
            load(tmp_path, odd)


def test_without_a_training_split_a_split_numbers_its_own_classes(tmp_path: Path) -> None:
    put(tmp_path, "val/10/1.png", "val/9/0.png")
    assert load(tmp_path, "val").classes == ("9", "10")


def test_grey_images(tmp_path: Path) -> None:
    put(tmp_path, "train/a/7.png", "train/b/9.png")
    data = load(tmp_path, channels=1)
    assert (data.kind, tuple(data.images.shape), colours(data)) == (GREY, (2, 1, 4, 4), [7, 9])
    assert source(tmp_path, channels=1, size=8).scan("train").shape == (1, 8, 8)


def test_new_parameters_leave_earlier_keys_alone(tmp_path: Path) -> None:
    described = registry.describe("dataset", {"name": "image_folder", "folder": str(tmp_path), "classes": ["a"]})
    assert described == {"name": "image_folder", "version": 1, "size": None, "fit": "crop"}
    assert registry.describe("dataset", "digits") == {"name": "digits", "version": 1}
    grey = registry.describe("dataset", {"name": "digits", "channels": 1})
    assert grey == {"name": "digits", "version": 1, "channels": 1}
    assert registry.rebuild(DataSource, grey).load("test").kind == GREY


def test_links_are_followed_but_not_upwards(tmp_path: Path) -> None:
    put(tmp_path, "train/a/0.png", "elsewhere/deep/1.png", "train/c/2.png")
    (tmp_path / "train" / "b").mkdir()
    (tmp_path / "train" / "b" / "deep").symlink_to(tmp_path / "elsewhere" / "deep")
    (tmp_path / "train" / "b" / "up").symlink_to(tmp_path / "train")
    (tmp_path / "train" / "c" / "folder.png").mkdir()
    data = load(tmp_path)
    assert (colours(data), data.labels.tolist(), data.classes) == ([0, 1, 2], [0, 1, 2], ("a", "b", "c"))
    (tmp_path / "train" / "c" / "gone.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"c/gone\.png: cannot be read \(No such file"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["0.heic", "0.npy", "0"])
def test_a_class_whose_pictures_are_not_read_is_not_left_out(tmp_path: Path, name: str) -> None:
    put(tmp_path, "train/b/1.png", "test/b/1.png")
    (tmp_path / "train" / "notes").mkdir()
    (tmp_path / "train" / "notes" / "notes.txt").write_text("x")
    assert load(tmp_path).classes == ("b",)
    (tmp_path / "train" / "a").mkdir()
    (tmp_path / "train" / "a" / name).write_bytes(b"x")
    for split in ("train", "test"):
        with pytest.raises(DataError, match=rf"train/a: contains no file that is read as an image; found {name}, exp"):
            load(tmp_path, split)


def test_names_are_compared_with_composed_letters(tmp_path: Path) -> None:
    one, two = "caf\u00e9", "cafe\u0301"  # as Linux and as macOS write it
    put(tmp_path, "train/a/0.png", f"train/{one}/1.png", f"test/{two}/1.png")
    assert load(tmp_path, "test").labels.tolist() == [1]
    assert load(tmp_path, "test", classes=[one, "a"]).labels.tolist() == [0]
    put(tmp_path, f"train/{two}/1.png")
    with pytest.raises(DataError, match="the same name; merge them"):
        load(tmp_path)


def test_hints_for_folders_of_another_layout(tmp_path: Path) -> None:
    put(tmp_path, "one/a/0.png", "one/b/1.png", "two/Test/a/0.png")
    with pytest.raises(DataError, match=r"its sub-folders contain images: move them into .*one/test"):
        load(tmp_path / "one", "test")
    with pytest.raises(DataError, match=r"write `splits: {test: Test}`"):
        load(tmp_path / "two", "test")
    (tmp_path / "two" / "classes.txt").write_bytes("\u00e9".encode("latin-1"))
    with pytest.raises(DataError, match=r"classes\.txt: not in UTF-8; expected a text file"):
        load(tmp_path / "two", "Test")
