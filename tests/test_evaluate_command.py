"""`siegebench evaluate`: one line for somebody with a network and images."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.torch import save_file

from siegebench import cli, registry
from siegebench.config import load_suite
from siegebench.errors import ConfigError, DataError
from siegebench.evaluating import data_spec, job, model_spec
from siegebench.store import Store
from siegebench.types import DataSource
from tests.zoo.exported import net, onnx_file

NET = """
from torch import nn

def make():
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
"""
QUICK = {
    "suite": "quick",
    "data": {"set": "digits", "count": 10},
    "models": ["byobnet_tiny"],
    "boards": [
        {
            "track": "white_box", "attacks": ["fgsm"], "measures": [], "search": "none",
            "threats": [{"norm": "linf", "eps": "8/255"}],
        },
        {
            "track": "query", "attacks": [{"name": "square", "queries": 10}], "queries": 10,
            "threats": [{"norm": "linf", "eps": "8/255"}],
        },
        {"track": "corruption", "corruptions": ["brightness"], "severities": [1], "models": ["byobnet_tiny"]},
        {"track": "backdoor", "backdoors": ["badnets"]},
    ],
}  # fmt: skip


def pictures(folder: Path, classes: int = 10, each: int = 2, size: int = 12) -> Path:
    numbers = np.random.default_rng(0)
    for c in range(classes):
        (folder / f"class_{c}").mkdir(parents=True)
        for i in range(each):
            pixels = numbers.integers(0, 256, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"class_{c}" / f"{i}.png")
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a network, its weights, images and a suite of a few seconds."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    save_file(net().state_dict(), tmp_path / "My-net.safetensors")
    (tmp_path / "quick.yaml").write_text(yaml.safe_dump(QUICK))
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04 and no end")
    pictures(tmp_path / "mine" / "test")
    return tmp_path


MODEL = "{name: python_file, file: net.py, make: make}"


def run(capsys: Any, monkeypatch: Any, *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["siegebench", "evaluate", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    out, err = capsys.readouterr()
    return int(end.value.code or 0), out, err


def test_a_network_and_images_are_enough(home: Path, capsys: Any, monkeypatch: Any) -> None:
    words = ("My-net.safetensors", "--model", MODEL, "--data", "mine", "--suite", "quick.yaml", "--images", "12")
    code, out, err = run(capsys, monkeypatch, *words, "--slots", "1")
    assert code == 0, err
    assert "network: make, weights of My-net.safetensors; normalisation: mean 0, 0, 0, std 1, 1, 1" in err
    assert f"images: 12 of the 20 of {home / 'mine' / 'test'}, 10 classes, 3x12x12" in err
    assert "accuracy on 12 of them" in err
    assert "white_box: fgsm at linf 8/255" in err
    assert "left out: the backdoor boards" in err
    assert "time: roughly up to" in err
    assert "White box: linf 8/255" in out
    assert "Common corruptions: 1 of them on" in out
    assert "page: results/my_net.html" in out
    assert (home / "results" / "my_net.html").is_file()
    assert load_suite(str(home / "results" / "my_net.yaml")).suite == "my_net"
    rows = list(Store(home / "results").rows())
    assert {r.cell.track: r.status for r in rows} == {"white_box": "ok", "query": "ok", "corruption": "ok"}
    assert str(home) not in json.dumps([r.as_dict() for r in rows])
    code, out, err = run(capsys, monkeypatch, *words, "--slots", "1", "--json")
    assert code == 0, err
    assert {board["track"] for board in json.loads(out)["boards"]} == {"white_box", "query", "corruption"}
    assert "3 stored before" in err


def test_a_network_in_onnx_needs_no_model(home: Path, capsys: Any, monkeypatch: Any) -> None:
    onnx_file(home)
    code, out, err = run(
        capsys, monkeypatch, "net.onnx", "--data", "mine/test", "--suite", "quick.yaml", "--images", "10",
        "--slots", "1", "--eps", "4/255",
    )  # fmt: skip
    assert code == 0, err
    assert "white_box: fgsm at linf 4/255 (not applicable: no gradients)" in err
    assert "onnx net.onnx gives scores and no gradients" in " ".join(out.split())
    assert "Query, score access: linf 4/255" in out


def test_a_dry_run_computes_nothing(home: Path, capsys: Any, monkeypatch: Any) -> None:
    code, out, err = run(
        capsys, monkeypatch, "My-net.safetensors", "--model", MODEL, "--data", "mine", "--dry-run", "--images", "10"
    )
    assert code == 0, err
    assert "white_box: pgd, autoattack at linf 8/255, l2 0.5" in err
    assert "12 cells, 12 to compute" in out
    assert [line for line in (out + err).splitlines() if "time" in line] == [err.splitlines()[-2]], "one time"
    assert "time: roughly up to" in err
    assert not list(Store(home / "results").rows())
    first = (home / "results" / "my_net.yaml").read_bytes()
    for folder in ("other", "third"):
        pictures(home / folder)
    for folder, stem in (("other", "my_net_2"), ("third", "my_net_3"), ("other", "my_net_2")):
        words = ("My-net.safetensors", "--model", MODEL, "--data", folder, "--dry-run", "--images", "10")
        assert f"suite: results/{stem}.yaml" in run(capsys, monkeypatch, *words)[2], "images of another folder"
    assert (home / "results" / "my_net.yaml").read_bytes() == first


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("gone.pth", "--data", "mine"), "gone.pth: there is no such file; name it with --model"),
        (("My-net.safetensors", "--data", "mine"), "does not say its architecture; name it with --model, such as"),
        (("My-net.safetensors", "--data", "mine", "--model", "resnet18"), "unknown model 'resnet18'"),
        (("My-net.safetensors", "--data", "nothere", "--model", MODEL), "--data: there is no folder 'nothere'"),
        (("My-net.safetensors", "--data", "mine", "--model", MODEL, "--norm", "l3"), "--norm l3: unknown norm"),
        (("My-net.safetensors", "--data", "mine", "--model", MODEL, "--eps", "wide"), "--eps wide: expected a number"),
        (("My-net.safetensors", "--data", "mine", "--model", MODEL, "--eps", "8"), "--eps 8: threat: eps 8.0 is out"),
        (("net.py", "--data", "mine"), "net.py: Python code; give the file of its weights, and --model '{name: python"),
        (
            ("My-net.safetensors", "--data", "mine", "--model", "net.py:make"),
            "--model net.py:make: for a class in a Python file write --model '{name: python_file, file: FILE.py,",
        ),
        (("cut.pt", "--data", "mine"), "cut.pt: the end of the file is missing"),
        (("mine", "--data", "mine"), "mine: a folder without config.json, which a folder of Hugging Face has"),
        (("My-net.safetensors", "--data", "mine", "--model", "small_vgg"), "weights of another architecture"),
    ],
)
def test_errors_come_first_and_in_one_line(
    home: Path, capsys: Any, monkeypatch: Any, words: tuple[str, ...], said: str
) -> None:
    code, out, err = run(capsys, monkeypatch, *words)
    assert code == 2
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert out == ""
    assert not (home / "results").exists()


def test_folders_of_classes_and_of_splits(tmp_path: Path) -> None:
    flat = pictures(tmp_path / "photos", classes=2)
    assert data_spec(str(flat)) == ({"name": "image_folder", "folder": str(tmp_path)}, "photos")
    split = tmp_path / "split"
    for name in ("train", "val"):
        pictures(split / name, classes=2)
    assert data_spec(str(split)) == ({"name": "image_folder", "folder": str(split)}, "val")
    assert data_spec("digits") == ({"name": "digits"}, "test")
    names = flat / "classes.txt"
    names.write_text("".join(f"class_{i}\n" for i in range(5)))
    listed, name = data_spec(str(flat))
    assert listed == {"name": "image_folder", "folder": str(tmp_path), "classes": str(names)}
    assert registry.build(DataSource, listed).load(name).num_classes == 5
    pictures(tmp_path / "only" / "train", classes=2)
    with pytest.raises(DataError, match="has the splits train, and images for training say nothing of robustness"):
        data_spec(str(tmp_path / "only"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no folders of classes"):
        data_spec(str(tmp_path / "empty"))


def test_the_size_is_that_of_the_network_or_of_the_images(home: Path) -> None:
    weights = str(home / "My-net.safetensors")
    model = {"name": "python_file", "file": str(home / "net.py"), "make": "make"}
    assert job(weights, model, str(home / "mine"), images=5).images.shape == (3, 12, 12)
    assert job(weights, model, str(home / "mine"), images=5, size=8).images.shape == (3, 8, 8)
    graph = str(onnx_file(home, "fixed.onnx", shape=("n", 3, 16, 16)))
    assert job(graph, None, str(home / "mine"), images=5).images.shape == (3, 16, 16)
    Image.new("RGB", (20, 9)).save(home / "mine" / "test" / "class_0" / "other.png")
    assert job(graph, None, str(home / "mine"), images=5).images.shape == (3, 16, 16)
    with pytest.raises(DataError, match=r"images of .* and .* pixels, and the network does not say .* give --size N"):
        job(weights, model, str(home / "mine"))


def test_budgets_are_those_of_large_images(home: Path) -> None:
    graph = str(onnx_file(home, "fixed.onnx", shape=("n", 3, 65, 65)))
    boards = job(graph, None, str(home / "mine"), images=5).content["boards"]
    assert [b.get("threats") for b in boards] == [
        [{"norm": "linf", "eps": "4/255"}, {"norm": "l2", "eps": 3.0}], [{"norm": "linf", "eps": "4/255"}], None,
    ]  # fmt: skip
    only = job(graph, None, str(home / "mine"), images=5, norm="l2").content["boards"]
    assert [b["track"] for b in only] == ["white_box", "corruption"]


def test_the_file_goes_where_the_entry_takes_it(home: Path) -> None:
    path = home / "My-net.safetensors"
    assert model_spec(str(path), "timm/resnet18") == {"name": "timm/resnet18", "checkpoint": str(path)}
    assert model_spec("below-weights.pth", "timm/resnet18")["checkpoint"] == "below-weights.pth"
    assert model_spec(str(onnx_file(home)), None) == {"name": "onnx", "file": str(home / "net.onnx")}
    with pytest.raises(ConfigError, match="--model has a checkpoint of its own"):
        model_spec(str(path), {"name": "timm/resnet18", "checkpoint": "other.pth"})
    with pytest.raises(ConfigError, match=r"--model: unknown model 'resnet18'. Did you mean timm/resnet18\?"):
        model_spec(str(path), "resnet18")
