"""Weights: whole, finite, and never code."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import pickle
import runpy
import subprocess
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from siegebench.errors import ModelError
from siegebench.weights import check_fit, load_weights, read_weights, save_weights, weights_hash


def state() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    return {
        "b.weight": torch.randn(4, 3, generator=g),
        "a.weight": torch.randn(2, 3, 2, 2, generator=g).to(memory_format=torch.channels_last),
        "a.half": torch.randn(3, generator=g).to(torch.bfloat16),
        "a.count": torch.tensor(7),
    }


def test_weights_survive_every_container_with_one_hash(tmp_path: Path) -> None:
    want = state()
    save_weights(tmp_path / "deep" / "w.safetensors", want)
    torch.save(want, tmp_path / "plain.pth")
    torch.save({"state_dict": {f"module.{k}": v for k, v in want.items()}, "best": 0.5}, tmp_path / "wrapped.pth")
    for file in ("deep/w.safetensors", "plain.pth", "wrapped.pth"):
        found = load_weights(tmp_path / file)
        assert found.keys() == want.keys()
        assert all(torch.equal(found[k], want[k]) for k in want)
        assert weights_hash(found) == weights_hash(want)
    assert os.listdir(tmp_path / "deep") == ["w.safetensors"]  # no temporary file is left


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s | {"b.weight": s["b.weight"] + 1e-6},
        lambda s: s | {"b.weight": s["b.weight"].double()},
        lambda s: s | {"b.weight": s["b.weight"].reshape(3, 4)},
        lambda s: {("c.weight" if k == "b.weight" else k): v for k, v in s.items()},
    ],
    ids=["value", "type", "shape", "name"],
)
def test_the_hash_sees_every_change(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    assert weights_hash(change(state())) != weights_hash(state())


def test_tied_weights_are_saved(tmp_path: Path) -> None:
    one = torch.rand(3)
    save_weights(tmp_path / "w.safetensors", {"a": one, "b": one})
    assert torch.equal(load_weights(tmp_path / "w.safetensors")["b"], one)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, {"a": torch.zeros(3)})

    def full(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        save_weights(path, {"a": torch.ones(3)})
    assert torch.equal(load_weights(path)["a"], torch.zeros(3))
    assert os.listdir(tmp_path) == ["w.safetensors"]


class Payload:
    def __init__(self, call: Callable[..., object], *arguments: object) -> None:
        self.reduced = call, arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.reduced


def pickled(folder: Path, content: object, how: str) -> Path:
    path = folder / ("w.safetensors" if how == "renamed" else "w.pth")
    if how in ("torch", "old"):
        torch.save({"a": torch.zeros(1), "trap": content}, path, _use_new_zipfile_serialization=how == "torch")
    else:
        path.write_bytes(pickle.dumps({"a": content}, protocol=4 if how == "protocol 4" else 2))
    return path


HOW = ["torch", "old", "raw", "renamed", "protocol 4"]


@pytest.mark.parametrize("how", HOW)
def test_a_pickle_that_runs_code_is_refused_before_it_runs(tmp_path: Path, how: str) -> None:
    trap = Payload(os.system, f"touch {tmp_path}/executed")
    with pytest.raises(ModelError, match=r"w\.(pth|safetensors): refused: reading it .* would call posix\.system\."):
        load_weights(pickled(tmp_path, trap, how))
    assert not (tmp_path / "executed").exists()
    pickle.loads(pickle.dumps(trap))  # the trap is armed
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "call", [eval, exec, open, __import__, subprocess.Popen, runpy.run_path, importlib.import_module]
)
def test_functions_that_no_checkpoint_needs_are_named(tmp_path: Path, call: Callable[..., object]) -> None:
    path = pickled(tmp_path, Payload(call, f"open('{tmp_path}/executed', 'w')"), "torch")
    with pytest.raises(ModelError, match=rf"would call {call.__module__}\.{call.__name__}\. No checkpoint needs that"):
        load_weights(path)
    assert not (tmp_path / "executed").exists()


class Loud:
    """Whatever is called of this class is heard."""

    heard: ClassVar[list[str]] = []

    def __init__(self, word: str) -> None:
        self.word = word
        self.heard.append("init")

    def __new__(cls, *arguments: object) -> Loud:
        cls.heard.append("new")
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        self.heard.append("setstate")

    def __reduce__(self) -> tuple[object, ...]:
        return Loud, (self.word,), {"word": self.word, "weights": torch.ones(2)}


@pytest.mark.parametrize("how", HOW)
def test_classes_of_a_file_are_neither_imported_nor_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    (tmp_path / "loud_module.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\nclass Thing: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    module = types.ModuleType("loud_module")
    module.Thing = type("Thing", (), {"__module__": "loud_module"})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "loud_module", module)
    path = pickled(tmp_path, [Loud("x"), module.Thing(), Path("/data"), functools.partial(print, "run")], how)
    monkeypatch.delitem(sys.modules, "loud_module")
    Loud.heard.clear()
    found = read_weights(path)["trap" if how in ("torch", "old") else "a"]
    assert not Loud.heard
    assert "loud_module" not in sys.modules
    assert not (tmp_path / "imported").exists()
    assert found[0]["word"] == "x"
    assert torch.equal(found[0]["weights"], torch.ones(2))


def test_a_pickle_cannot_change_the_functions_that_read_it(tmp_path: Path) -> None:
    """BUILD sets attributes of whatever it is given; here it is given a function of torch."""
    rebuild = torch._utils._rebuild_tensor_v2
    before = rebuild.__defaults__
    build = b"ctorch._utils\n_rebuild_tensor_v2\n(N}X\x0c\x00\x00\x00__defaults__K\x01\x85st" + b"b0"
    (tmp_path / "w.pth").write_bytes(b"\x80\x02" + build + b"}.")
    with pytest.raises(ModelError, match="damaged"):
        read_weights(tmp_path / "w.pth")
    assert rebuild.__defaults__ == before


def test_messages_are_plain_whole_sentences(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1), "note": Loud("x")}, tmp_path / "good.pth")
    whole = (tmp_path / "good.pth").read_bytes()
    for content in (b"", b"\x80", b"\x80\x02\x1b[1m", whole[:100], whole[:-40], whole.replace(b"numpy", b"nump\x1b")):
        (tmp_path / "w.pth").write_bytes(content)
        with contextlib.suppress(ModelError):
            read_weights(tmp_path / "w.pth")
            continue
        with pytest.raises(ModelError) as error:
            read_weights(tmp_path / "w.pth")
        assert str(error.value).isprintable()
        assert str(error.value).startswith(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.h5", b"\x89HDF\r\n\x1a\n", "an HDF5 file, such as Keras writes; expected weights as .safetensors or .pth"),
        ("w.npy", b"\x93NUMPY\x01\x00", "a single array of numpy"),
        ("w.pth", b"version https://git-lfs.github.com/spec/v1\n", "only a pointer of Git LFS; .*`git lfs pull`"),
        ("w.pth", b"<!DOCTYPE html><html>", "a web page"),
        ("w.tflite", b"\x1c\x00\x00\x00TFL3", "a TensorFlow Lite network"),
        ("w.onnx", b"\x08\x07\x12\x07pytorch", "an ONNX network"),
        ("w.param", b"7767517\n", "the description of a network for ncnn"),
        ("w.bin", b"\x47\x6b\x30\x01", "numbers without names, such as the .bin of ncnn"),
        ("w.tar.gz", b"\x1f\x8b\x08", "compressed with gzip; unpack it first"),
        ("w.pth", b"epoch,accuracy\n", "not a weight file; it begins with b'epoch,ac'"),
        ("w.pth", b"", "an empty file"),
    ],
)
def test_files_of_other_formats_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=f"{name}: {message}"):
        read_weights(tmp_path / name)


def test_archives_that_are_no_checkpoint_are_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.zip", "w") as archive:
        archive.writestr("model/weights.pth", b"")
    with pytest.raises(ModelError, match=r"a zip archive without data\.pkl.*weights\.pth"):
        read_weights(tmp_path / "w.zip")


def test_damaged_missing_and_odd_files_are_refused(tmp_path: Path) -> None:
    good = {"a": torch.rand(100)}
    save_weights(tmp_path / "good.safetensors", good)
    torch.save(good, tmp_path / "good.pth")
    for name in ("good.safetensors", "good.pth"):
        whole = (tmp_path / name).read_bytes()
        for cut in (0, 7, len(whole) // 2):
            (tmp_path / f"cut-{name}").write_bytes(whole[:cut])
            with pytest.raises(ModelError, match="cut-good"):
                load_weights(tmp_path / f"cut-{name}")
    with pytest.raises(ModelError, match="no such file"):
        load_weights(tmp_path / "absent.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ModelError, match="found list"):
        load_weights(tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "odd.pth")
    with pytest.raises(ModelError, match="'epoch' is int, expected a tensor"):
        load_weights(tmp_path / "odd.pth")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, bad: float) -> None:
    save_file({"fine": torch.ones(2), "layer.weight": torch.tensor([1.0, bad])}, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"layer\.weight contains NaN or infinite"):
        load_weights(tmp_path / "w.safetensors")


def test_weights_of_another_network_are_named() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).state_dict()
    old = {k: v for k, v in net.items() if not k.endswith("num_batches_tracked")}
    check_fit(old, net, "old.pth")
    with pytest.raises(ModelError, match=r"1 tensors missing \(such as 0\.bias\), 1 not of this network"):
        check_fit({**{k: v for k, v in net.items() if k != "0.bias"}, "x": torch.zeros(1)}, net, "w")
    with pytest.raises(ModelError, match=r"0\.weight is \(2, 3, 3, 3\), this network expects \(4, 3, 3, 3\)"):
        check_fit(net | {"0.weight": torch.zeros(2, 3, 3, 3)}, net, "w")
