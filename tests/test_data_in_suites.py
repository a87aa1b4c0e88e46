"""Data sets as suites use them: splits of any name, folders side by side, what is decoded, what a row says of it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from siegebench.zoo import _images

from siegebench import api
from siegebench.cells import Result
from siegebench.config import load_suite
from siegebench.errors import ConfigError, DataError
from siegebench.plan import plan
from siegebench.workspace import Settings, Workspace
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


# ------------------------------------------------------------------------------------------------------ what is decoded


def many(tmp_path: Path, form: str, n: int = 1000) -> tuple[dict[str, Any], str]:
    """A data set of n small pictures for each split, and the name of its evaluated split."""
    blobs = []
    for i in range(n):
        out = io.BytesIO()
        Image.fromarray(np.full((4, 4, 3), i % 250, np.uint8)).save(out, "PNG")
        blobs.append(out.getvalue())
    if form == "image_folder":
        for split in ("train", "test"):
            for i, blob in enumerate(blobs):
                path = tmp_path / "data" / split / str(i % 2) / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(blob)
        return {"name": form, "folder": str(tmp_path / "data")}, "test"
    if form == "gtsrb_original":
        for i, blob in enumerate(blobs):
            path = tmp_path / "gtsrb" / "GTSRB" / "Training" / f"{i % 43:05}" / f"{i // 43:05}_00000.ppm"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(blob)
        return {"name": form, "folder": str(tmp_path)}, "train"
    if form == "hub":
        from huggingface_hub import constants

        repo = Path(constants.HF_HUB_CACHE) / "datasets--someone--toy"
        (repo / "refs").mkdir(parents=True)
        (repo / "refs" / "main").write_text("0" * 40)
        folder, spec = repo / "snapshots" / ("0" * 40) / "data", {"name": "hub", "dataset": "someone/toy"}
    else:
        folder, spec = tmp_path / "data", {"name": "parquet", "folder": str(tmp_path / "data")}
    folder.mkdir(parents=True)
    table = pa.table({"image": [{"bytes": b, "path": None} for b in blobs], "label": [i % 2 for i in range(n)]})
    for split in ("train", "test"):
        pq.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    return {**spec, "num_classes": 2}, "test"


@pytest.mark.parametrize("form", ["image_folder", "parquet", "hub", "gtsrb_original"])
def test_eight_of_a_thousand_pictures_decode_eight(
    form: str, tmp_path: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    spec, split = many(tmp_path, form)
    assert len(api.load_data(spec, split, 8)) == 8
    assert (len(decoded), len(set(decoded))) == (8, 8)
    decoded.clear()

    board = {"track": "corruption", "corruptions": ["contrast"], "severities": [1]}  # a given model: nothing trains
    path = runs.suite(tmp_path / "suite.yaml", board, data={"set": spec, "split": split, "count": 8})
    planned = plan(load_suite(str(path)), given={"name": "mine", "version": 1})
    (cell,) = planned.cells
    assert "train_digest" not in cell.data
    assert (len(decoded), len(set(decoded))) == (8, 8)
    workspace = Workspace(Settings(root=str(tmp_path / "store"), device="cpu", specs=planned.specs))
    assert len(workspace.evaluated(cell.data)) == 8
    assert (len(decoded), len(set(decoded))) == (16, 8)  # once for the plan, once where the cell is computed
