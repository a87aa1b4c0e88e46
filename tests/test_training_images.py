"""`data.train` limits the images that a board may train and fit on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from siegebench.leaderboard import rank
from siegebench.leaderboard.board import slice_of

from siegebench import api, registry, schema
from siegebench.config import load_suite
from siegebench.data import limited
from siegebench.errors import ConfigError, DataError
from siegebench.plan import plan
from siegebench.workspace import Settings, Workspace
from tests import rows as make
from tests import runs
from tests.outsider.tiny import net
from tests.rows import attacked


@pytest.fixture(autouse=True)
def outsider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with runs.known(tmp_path / "site", monkeypatch):
        yield


def suite(tmp_path: Path, **data: Any) -> str:
    model = {"name": runs.MODEL, "recipe": {"epochs": 1}}
    spec = {"set": "digits", "count": 20, **data}
    return str(runs.suite(tmp_path / "suite.yaml", runs.board(measures=[]), models=[model], data=spec))


def test_the_training_images_are_balanced_and_always_the_same() -> None:
    whole = registry.build("dataset", "digits").load("train")  # type: ignore[attr-defined]
    part = limited(whole, 100)
    assert len(part) == 100
    assert set(torch.bincount(part.labels).tolist()) <= {9, 10, 11}
    assert torch.equal(part.ids, limited(whole, 100).ids)
    assert limited(whole, None) is whole


def test_networks_are_trained_on_that_many_images(tmp_path: Path) -> None:
    outcome = api.run(suite(tmp_path, train=60), Settings(root=str(tmp_path / "store"), device="cpu", threads=1))
    (row,) = outcome.results
    assert row.error is None
    assert row.cell.data["train"] == 60
    schema.check(row.as_dict())
    parts = Workspace(Settings(root=str(tmp_path / "store"), device="cpu")).splits(row.cell.data)
    assert sum(map(len, parts)) == 60


def test_the_limit_is_part_of_the_key_and_only_where_there_is_one(tmp_path: Path) -> None:
    limits: list[dict[str, int]] = [{}, {"train": 60}, {"train": 50}]
    whole, some, fewer = (plan(load_suite(suite(tmp_path, **limit))).cells[0] for limit in limits)
    assert "train" not in whole.data
    assert (
        len({c.key for c in (whole, some, fewer)}) == len({c.data["train_digest"] for c in (whole, some, fewer)}) == 3
    )


@pytest.mark.parametrize(
    ("train", "kind", "told"),
    [(10**6, DataError, r"suite\.yaml:\d+:\d+: .*1000000 images requested, it has 1297"),
     (0, ConfigError, r"suite\.yaml:\d+:\d+: data\.train")],
)  # fmt: skip
def test_limits_that_cannot_be_are_refused_with_their_place(
    tmp_path: Path, train: int, kind: type[Exception], told: str
) -> None:
    with pytest.raises(kind, match=told):
        plan(load_suite(suite(tmp_path, train=train)))


@pytest.mark.parametrize(("trained", "undefended"), [(True, 2), (False, 1)])
@pytest.mark.parametrize("track", ["white_box", "corruption"])
def test_networks_and_defenses_are_trained_with_each_training_seed(
    track: str, trained: bool, undefended: int, tmp_path: Path
) -> None:
    model: dict[str, Any] = {"name": runs.MODEL, "recipe": {"epochs": 1}}
    if not trained:
        model = {"name": runs.MODEL, "checkpoint": str(tmp_path / "w.safetensors")}
        save_file(net(10, api.load_data("digits", count=1).size).state_dict(), model["checkpoint"])
    hardened = {"name": "pgd_at", "steps": 1, "recipe": {"epochs": 1}}
    seeds = {"defenses": ["none", hardened], "train_seeds": [0, 4]}
    board = {"track": track, "corruptions": ["contrast"], "severities": [1], **seeds}
    if track == "white_box":
        board = runs.board(measures=[], search="none", **seeds)
    data = {"set": "digits", "count": 20, "train": 40}
    file = str(runs.suite(tmp_path / "s.yaml", board, models=[model], data=data))
    rows = api.run(file, Settings(root=str(tmp_path / "store"), device="cpu", threads=1)).results
    assert [r.error for r in rows] == [None] * len(rows)
    of = {name: [r for r in rows if (r.cell.defense or {})["name"] == name] for name in ("none", "pgd_at")}
    assert len(of["none"]) == undefended
    assert len({r.weights for r in of["pgd_at"]}) == 2
    (found,) = rank.boards(rows)
    assert len({line.title for line in found.lines}) == len(found.lines) == undefended + 2


def test_rows_with_and_without_a_limit_are_not_on_one_board() -> None:
    plain, some = attacked("pgd", 10), attacked("pgd", 10, data={**make.DATA, "train": 500})
    assert slice_of(plain) != slice_of(some)
    assert len(slice_of(plain)) == 4, "boards of older rows keep their names"
