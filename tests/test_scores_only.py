"""A network that gives scores only: query boards rank it, white-box boards say in one line that they cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from siegebench.leaderboard import rank

from siegebench import api
from siegebench.cells import Result
from siegebench.config import load_suite
from siegebench.reporting import report
from siegebench.workspace import Settings
from tests import runs
from tests.zoo.exported import net, onnx_file

OTHER = """
from torch import nn

def make():
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
"""
THREATS = {"threats": [{"norm": "linf", "eps": "16/255"}]}


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    folder = tmp_path_factory.mktemp("scores")
    models = [{"name": "onnx", "file": str(onnx_file(folder))}]
    (folder / "other.py").write_text(OTHER)
    other = [
        {"name": "python_file", "file": str(folder / "other.py"), "make": "make", "checkpoint": str(folder / "w.pt")}
    ]
    torch.save(net().state_dict(), folder / "w.pt")
    transfer = {"track": "transfer", "attacks": ["fgsm"], **THREATS}
    file = runs.suite(
        folder / "s.yaml",
        {"track": "white_box", "attacks": ["fgsm", "square"], "defenses": ["none", "bit_depth"], **THREATS},
        {"track": "query", "attacks": [{"name": "square", "queries": 20}], "queries": 20, **THREATS},
        {**transfer, "surrogates": other},
        {**transfer, "surrogates": models, "models": other},
        {"track": "corruption", "corruptions": ["brightness"], "severities": [1]},
        models=models,
        data={"set": "digits", "count": 20},
    )
    return api.run(load_suite(str(file)), Settings(root=str(folder / "store"), threads=1)).results


def test_white_box_boards_say_why_in_one_line(computed: list[Result]) -> None:
    white = [r for r in computed if r.cell.track == "white_box"]
    assert len(white) > 5
    assert {r.status for r in white} == {"not_applicable"}
    for row in white:
        assert row.error is not None
        assert "onnx net.onnx gives scores and no gradients: evaluate it on query" in row.error["message"]


def test_query_and_corruption_boards_rank_it(computed: list[Result]) -> None:
    assert {r.status for r in computed if r.cell.track in ("query", "corruption")} == {"ok"}
    boards = {board.track: board for board in rank.boards(computed)}
    assert [line.rank for line in boards["query"].lines] == [(1, 1)]
    assert "gives scores and no gradients" in report(computed, "html")


def test_it_can_be_a_victim_of_transfer_and_no_surrogate(computed: list[Result]) -> None:
    of = {r.cell.labels["model"]: r.status for r in computed if r.cell.track == "transfer"}
    assert of == {"onnx": "ok", "python_file": "not_applicable"}


def test_the_same_network_from_python(computed: list[Result], tmp_path: Path) -> None:
    model = api.load_model("onnx", num_classes=10, size=32, file=str(onnx_file(tmp_path)))
    settings = Settings(root=str(tmp_path / "store"), threads=1)
    found = api.evaluate(
        model, "own", tracks=["query"], overrides=["boards.1.queries=20", "data.count=10"], settings=settings
    )
    assert [r.status for r in found.results] == ["ok"]
