"""Weights: whole, finite, and never code."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from siegebench.errors import ModelError
from siegebench.weights import check_fit, load_weights, save_weights, weights_hash


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
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("how", ["torch", "raw", "renamed"])
def test_a_pickle_that_runs_code_is_refused_before_it_runs(tmp_path: Path, how: str) -> None:
    trap = Payload(f"touch {tmp_path}/executed")
    path = tmp_path / ("w.safetensors" if how == "renamed" else "w.pth")
    if how == "torch":
        torch.save({"a": torch.zeros(1), "trap": trap}, path)
    else:
        path.write_bytes(pickle.dumps({"a": trap}, protocol=2))
    with pytest.raises(ModelError, match=r"w\.(pth|safetensors)"):
        load_weights(path)
    assert not (tmp_path / "executed").exists()
    pickle.loads(pickle.dumps(trap))  # the trap is armed
    assert (tmp_path / "executed").exists()


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
