"""Arrays of one's own: every usual layout gives the same images, and a wrong one is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.numpy import save_file

from siegebench import registry
from siegebench.data import GREY, IMAGE, ImageSet
from siegebench.errors import DataError
from siegebench.types import DataSource
from tests.kit import data_folder

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)  # NHWC
LABELS = np.array([2, 0, 1, 2])


def load(file: Path | str, split: str = "test", **more: Any) -> ImageSet:
    return registry.build(DataSource, {"name": "arrays", "file": str(file), **more}).load(split)


@pytest.mark.parametrize(
    ("images", "channels"),
    [
        (IMAGES, 3),
        (IMAGES.transpose(0, 3, 1, 2), 3),
        ((IMAGES / 255).astype(np.float32), 3),
        ((IMAGES / 255).transpose(0, 3, 1, 2), 3),
        (IMAGES[..., 0], 1),
        (IMAGES[..., :1], 1),
        (IMAGES[..., :1].transpose(0, 3, 1, 2) / 255, 1),
    ],
)
@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_every_layout_gives_the_same_images(images: Any, channels: int, suffix: str, tmp_path: Path) -> None:
    path, arrays = tmp_path / f"mine.{suffix}", {"a": np.ascontiguousarray(images), "b": LABELS}
    if suffix == "npz":
        np.savez(path, **arrays)
    else:
        save_file(arrays, path)
    data = load(path)
    assert torch.equal(data.images, torch.from_numpy(IMAGES).permute(0, 3, 1, 2)[:, :channels])
    assert (data.labels.tolist(), data.num_classes) == (LABELS.tolist(), 3)
    assert data.kind == (IMAGE if channels == 3 else GREY)
    assert load(path, images="a", labels="b", num_classes=7).num_classes == 7
    assert load(path, channels=4 - channels).shape[0] == 4 - channels
    with pytest.raises(DataError, match="has the splits test, not 'train'"):
        load(path, "train")


def test_splits_in_the_names_of_arrays_and_of_files(tmp_path: Path) -> None:
    both = tmp_path / "both.npz"
    np.savez(both, x_train=IMAGES, y_train=LABELS[:, None] + 4, x_test=IMAGES[::-1], y_test=LABELS)
    for split, offset in (("train", 4), ("test", 0)):
        np.savez(tmp_path / f"one_{split}.npz", image=IMAGES, label=LABELS + offset)
        np.save(tmp_path / f"x_{split}.npy", IMAGES)
        np.save(tmp_path / f"y_{split}.npy", LABELS + offset)
    separate = {"labels": str(tmp_path / "y_{split}.npy")}
    for more, file in (({}, both), ({"images": "x_{split}", "labels": "y_{split}"}, both),
                       ({}, tmp_path / "one_{split}.npz"), (separate, tmp_path / "x_{split}.npy")):  # fmt: skip
        train, test = load(file, "train", **more), load(file, "test", **more)
        assert (train.labels - 4).tolist() == test.labels.tolist() == LABELS.tolist()
        assert train.num_classes == test.num_classes == 7
    with pytest.raises(DataError, match=r"there is no file .*one_val\.npz"):
        load(tmp_path / "one_{split}.npz", "val")


@pytest.mark.parametrize(
    ("arrays", "more", "message"),
    [
        (
            {"a": IMAGES},
            {},
            r"which array are the labels, integers \[N\] \(.*\)\? Set `labels` to one of: a \[4, 5, 6, 3\]",
        ),
        ({"a": IMAGES, "c": IMAGES, "b": LABELS}, {}, r"which array are the images, \[N, H, W, C\]"),
        ({"a": IMAGES, "b": LABELS}, {"images": "x"}, "has no array 'x' for `images`"),
        ({"a": IMAGES, "b": LABELS[:3]}, {}, "4 images and 3 labels"),
        ({"a": IMAGES, "b": LABELS.astype(float)}, {}, r"labels are float64 \[4\]; expected integers \[N\]"),
        ({"a": IMAGES, "b": LABELS - 1}, {}, "label -1 is outside"),
        ({"a": IMAGES, "b": LABELS}, {"num_classes": 2}, r"label 2 is outside 0\.\.1"),
        ({"a": IMAGES[:, :, :, :2], "b": LABELS}, {}, r"images are \[4, 5, 6, 2\]; expected \[N, H, W\]"),
        ({"a": IMAGES.astype(float), "b": LABELS}, {}, "images are float64 from 0 to 25[0-9]; expected uint8, or"),
        (
            {"a": IMAGES.astype(np.int64), "b": LABELS},
            {},
            r"images are int64 .* Convert them: images\.astype\('uint8'\)",
        ),
        (
            {"a": IMAGES // 255, "b": LABELS},
            {},
            "images are uint8 from 0 to 1; expected 0 to 255.* Multiply them by 255",
        ),
        ({"a": IMAGES[:, :0], "b": LABELS}, {}, r"images are \[4, 0, 6, 3\]; expected a height"),
        ({"a": IMAGES / 255 - 0.5, "b": LABELS}, {}, "images are float64 from -0.5 to 0.5"),
        ({"a": np.where(IMAGES > 9, np.nan, 0.5), "b": LABELS}, {}, "images are float64 from nan"),
        ({"a": IMAGES, "b": np.array([{}] * 4)}, {}, "holds Python objects, which are not loaded"),
    ],
)
def test_a_wrong_file_is_refused(arrays: Any, more: Any, message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", **arrays)
    with pytest.raises(DataError, match=message):
        load(tmp_path / "mine.npz", **more)


@pytest.mark.parametrize("package", ["", "ml_dtypes"])  # it makes numpy know bfloat16
def test_a_damaged_file_is_refused(package: str, tmp_path: Path) -> None:
    if package:
        pytest.importorskip(package)
    for name in ("mine.npz", "mine.npy", "mine.safetensors"):
        (tmp_path / name).write_bytes(b"no arrays")
        with pytest.raises(DataError, match=f"{name}: not a readable"):
            load(tmp_path / name)
    torch.save({"a": torch.from_numpy(IMAGES)}, tmp_path / "mine.npz")
    with pytest.raises(DataError, match=r"not a readable .* \(a zip archive with '.*data\.pkl'\)"):
        load(tmp_path / "mine.npz")
    safetensors.torch.save_file({"a": torch.zeros(2, 3, 4, 4).bfloat16()}, tmp_path / "mine.safetensors")
    np.save(tmp_path / "mine.npy", np.array([{}]), allow_pickle=True)
    for name, said in (("mine.safetensors", "bfloat16"), ("mine.npy", "holds Python objects")):
        with pytest.raises(DataError, match=f"not a readable .*{said}"):
            load(tmp_path / name)
    np.savez_compressed(tmp_path / "mine.npz", a=IMAGES, b=LABELS)
    (tmp_path / "mine.npz").write_bytes((tmp_path / "mine.npz").read_bytes()[:-60])
    with pytest.raises(DataError, match="not a readable"):
        load(tmp_path / "mine.npz")


@pytest.mark.parametrize(("file", "shape"), [("mnist1000", (1, 28, 28)), ("cifar10_originals200", (3, 32, 32))])
def test_real_arrays(file: str, shape: tuple[int, ...]) -> None:
    path = data_folder() / "weights" / "alpha-beta-CROWN" / f"{file}.npz"
    if not path.is_file():
        pytest.skip(f"needs {path}")
    data = load(f"weights/alpha-beta-CROWN/{file}.npz")
    assert (data.shape, data.num_classes) == (shape, 10)
