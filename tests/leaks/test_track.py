"""The privacy track: errors of a suite with file and line, and the cells of a board."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from siegebench.config import load_suite
from siegebench.errors import ConfigError
from siegebench.plan import plan
from tests import runs

BOARD: dict[str, Any] = {"track": "privacy", "leaks": ["dlg", "soft_label"], "sharings": ["plain"]}


def suite(folder: Path, **changes: Any) -> str:
    board = {**BOARD, **changes}
    data = {"set": "digits", "count": board.pop("count", 8)}
    return str(runs.suite(folder / "s.yaml", board, models=["lenet_sigmoid"], data=data))


@pytest.mark.parametrize(
    ("changes", "told", "words"),
    [
        (
            {"client": {"batch": 4}},
            "soft_label",
            "leak 'soft_label' recovers 1 image of a client; the clients have batch: 4",
        ),
        (
            {"client": {"batch": 3}, "leaks": ["dlg"]},
            "count: 8",
            "8 images are not a multiple of the client's batch of 3",
        ),
        ({"client": {"gallery": 5000}}, "gallery: 5000", "the gallery has 4999 public images, the training set"),
        ({"client": {"state": "asleep"}}, "state: asleep", "'initial' or 'trained'"),
        ({"client": {"smoothing": 1.0}}, "smoothing: 1.0", "less than 1"),
        ({"leaks": ["dgl"]}, "- dgl", "unknown leak 'dgl'. Did you mean dlg?"),
        ({"sharings": [{"name": "prune", "share": 2}]}, "share: 2", "less than or equal to 1"),
        ({"count": 1, "client": {"mixup": True}}, "mixup: true", "mixup needs count: 2"),
    ],
)
def test_a_board_that_cannot_be_run_is_refused_with_its_line(
    tmp_path: Path, changes: dict[str, Any], told: str, words: str
) -> None:
    path = suite(tmp_path, **changes)
    line = next(i for i, text in enumerate(Path(path).read_text().splitlines(), 1) if told in text)
    with pytest.raises(ConfigError) as caught:
        plan(load_suite(path))
    assert words in str(caught.value)
    assert f"s.yaml:{line}:" in str(caught.value)


def test_a_board_has_a_cell_for_each_leak_and_rule_and_the_control(tmp_path: Path) -> None:
    planned = plan(load_suite(suite(tmp_path, sharings=["plain", "clip"])))
    cells = [(c.leak or {}, c.sharing or {}, c.client or {}) for c in planned.cells]
    assert {(leak["name"], rule["name"]) for leak, rule, _ in cells} == {
        (leak, rule) for leak in ("dlg", "soft_label", "prior") for rule in ("plain", "clip")
    }
    assert all(client["gallery"] == 500 and client["batch"] == 1 for *_, client in cells)
    assert all("train_seed" not in c.model for c in planned.cells)  # initial weights: nothing is trained
    trained = plan(load_suite(suite(tmp_path, client={"state": "trained"})))
    assert all(c.model["train_seed"] == 0 for c in trained.cells)
