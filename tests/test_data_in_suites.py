"""Data sets as suites use them: splits of any name, folders side by side, what is decoded, what a row says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from siegebench.zoo import _images

from siegebench import api
from siegebench.cells import Result
from siegebench.config import load_suite
from siegebench.errors import ConfigError, DataError
from siegebench.plan import plan
from siegebench.workspace import Settings
from tests import runs


@pytest.fixture(autouse=True)
def outsider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with runs.known(tmp_path / "site", monkeypatch):
        yield


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of all pictures that are decoded."""
    names: list[str] = []
    decode = _images.decode

    def counted(blobs: Any, *rest: Any, **more: Any) -> Any:
        return decode(((names.append(name), (name, blob))[1] for name, blob in blobs), *rest, **more)

    monkeypatch.setattr(_images, "decode", counted)
    return names


def folder(path: Path, per_class: int, seed: int = 0, splits: tuple[str, ...] = ("train", "val")) -> Path:
    """FOLDER/{train,val}/{9,10}/IMAGE: dark and light pictures with noise."""
    noise = np.random.default_rng(seed)
    for split in splits:
        for light, name in enumerate(("9", "10")):
            (path / split / name).mkdir(parents=True)
            for i in range(per_class):
                pixels = noise.integers(0, 80, (32, 32, 3)) + 150 * light
                Image.fromarray(pixels.astype(np.uint8)).save(path / split / name / f"{i}.png")
    return path


def board(path: Path, **data: Any) -> dict[str, Any]:
    spec = {"name": "image_folder", "folder": str(path)}
    return {**runs.board(), "data": {"set": spec, "split": "val", **data}}


def rows(tmp_path: Path, *boards: dict[str, Any]) -> list[Result]:
    path = runs.suite(tmp_path / "suite.yaml", *boards, models=[{"name": runs.MODEL, "recipe": {"epochs": 1}}])
    outcome = api.run(str(path), Settings(root=str(tmp_path / "store"), device="cpu", threads=1))
    assert [r.error for r in outcome.results if r.status != "ok"] == []
    return outcome.results


def test_two_folders_side_by_side_and_the_labels_in_the_row(tmp_path: Path) -> None:
    boards = [board(folder(tmp_path / name, 6, seed), count=8) for seed, name in enumerate(("one", "two"))]
    found = rows(tmp_path, *boards)
    assert len({r.cell.data["digest"] for r in found}) == 2
    assert len({r.cell.data["train_digest"] for r in found}) == 2
    for row in found:
        assert row.cell.data["split"] == "val"
        assert row.given["data"] == {"name": "image_folder", "classes": ["9", "10"]}
        assert "classes.txt" not in str(row.cell.data)


def test_an_unknown_split_is_refused_with_those_that_exist(tmp_path: Path) -> None:
    there = folder(tmp_path / "data", 1)
    for data, message in (
        (board(there, split="test")["data"], r"suite\.yaml:\d+:\d+: .*has the splits train, val"),
        ({"set": "digits", "split": "dev"}, r"suite\.yaml:\d+:\d+: digits has the splits train and test, not 'dev'"),
    ):
        path = runs.suite(tmp_path / "suite.yaml", data=data)
        with pytest.raises(DataError, match=message):
            plan(load_suite(str(path)))
    path = runs.suite(tmp_path / "suite.yaml", data={"set": "digits", "split": ""})
    with pytest.raises(ConfigError, match=r"suite\.yaml:\d+:\d+: data.split"):
        load_suite(str(path))
