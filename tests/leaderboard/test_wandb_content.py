"""What W&B is told of rows, as plain data: every number of the boards, under names that are unique and short enough."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from siegebench.leaderboard import wandb_content, wandb_tables
from siegebench.leaderboard.board import Board
from siegebench.leaderboard.figures import Bars, Curves, Dots, Polar, Scatter
from siegebench.leaderboard.wandb_charts import Chart, further, of_board
from siegebench.leaderboard.wandb_content import contents, of_suite
from siegebench.leaderboard.wandb_tables import board_table

from siegebench.cells import Cell
from siegebench.cli import wandb
from tests import rows as make
from tests.rows import attacked, everything, flag, repaired
from tests.wandb_kit import over_budgets, suite


@pytest.fixture(scope="module")
def every() -> tuple[Any, list[Board], list[Any]]:
    return suite(everything())


def test_a_table_has_every_number_of_its_board(every: Any) -> None:
    _, boards, _ = every
    for board in boards:
        table = board_table(board)
        assert len(set(table.columns)) == len(table.columns)
        for line, row in zip(board.lines, table.rows, strict=True):
            told = dict(zip(table.columns, row, strict=True))
            assert told["rank"] == line.place
            assert told["status"] == line.status
            assert {told[name] for name in line.names} == set(line.names.values())
            for column in board.columns:
                if column.unit == "text":
                    assert told[column.id] == line.texts.get(column.id)
                    continue
                number = line.number(column.id)
                assert told[column.id] == number.value
                if number.low is not None:
                    assert (told[f"{column.id} low"], told[f"{column.id} high"]) == (number.low, number.high)
            assert set(told["flags"].split(", ")) - {""} == {f.id for f in line.flags if f.severity != "info"}
            assert all(reason in told["why not ranked"] for reason in line.reasons)


def test_the_names_of_a_suite(every: Any) -> None:
    record, boards, rows = every
    (content,) = contents("per_suite", record, boards, rows, "<html>")
    assert content.id == record.id
    for board in boards:
        assert f"boards/{board.id}" in content.names
        for line, name in zip(board.lines, wandb_content.primary_names(board).values(), strict=True):
            assert content.summary.get(name) == line.value(board.primary)
    assert content.summary["suite/cells"] == len(rows)
    assert content.summary["suite/cells_failed"] == sum(r.status == "error" for r in rows) > 0
    assert content.summary["suite/controls_uncaught"] == 0
    assert len(content.tables["rows"].rows) == len(rows)
    flags = {(row[2], row[3], row[4]) for row in content.tables["flags"].rows}
    assert flags == {(f.severity, f.id, f.evidence) for b in boards for line in b.lines for f in line.flags}
    for name in content.names:
        assert "." not in name
        assert len(name) < 200
    json.dumps([content.config, content.summary], allow_nan=False)


def test_numbers_that_are_not_finite_are_left_out() -> None:
    rows = [attacked(name, 50) for name in ("autoattack", "pgd")]
    for row in rows:
        row.timing["seconds"] = 1e308
    assert "suite/seconds" not in of_suite(*suite(rows)).summary


def test_names_of_lines_that_would_be_equal_are_told_apart() -> None:
    rows = [attacked("autoattack", 50, model=name) for name in ("a.b", "a b", "c")]
    _, boards, _ = suite(rows)
    names = list(wandb_content.primary_names(boards[0]).values())
    assert len(set(names)) == 3
    assert sum(name.endswith("/c-none") for name in names) == 1


def test_the_config_is_the_resolved_suite(every: Any) -> None:
    record, boards, rows = every
    config = of_suite(record, boards, rows).config
    for row in rows:
        track = config["tracks"][row.cell.track]
        for slot in ("model", "defense", "attack", "backdoor", "detector", "threat", "data"):
            if getattr(row.cell, slot) is not None:
                assert getattr(row.cell, slot) in track[slot]
        assert row.cell.seed in track["seed"]
    assert config["env"] == {"torch": "2.8", "device": "cpu"}


def test_nothing_tells_of_the_machine(every: Any) -> None:
    record, boards, rows = every
    failed = make.broken(attacked("fgsm", 3))
    failed.error = {"type": "OSError", "message": "no file", "traceback": "File /srv/somebody/x.py"}
    rows = [*rows, failed]
    told = "".join(repr(contents(runs, record, boards, rows)) for runs in ("per_suite", "per_line", "per_cell"))
    assert "no file" in told
    assert "secret-host" not in told
    assert "somebody" not in told


def test_the_artifact_has_every_row(every: Any) -> None:
    record, boards, rows = every
    content = of_suite(record, boards, rows, "<html>")
    assert content.files["page.html"] == b"<html>"
    lines = [json.loads(line) for line in content.files["rows.jsonl"].splitlines()]
    assert {line["key"] for line in lines} == {row.cell.key for row in rows}
    by_key = {line["key"]: line for line in lines}
    for row in rows:
        assert by_key[row.cell.key]["metrics"] == row.metrics
        assert by_key[row.cell.key]["samples"] == row.samples
        assert Cell.from_dict(by_key[row.cell.key]["cell"]).key == row.cell.key


def test_a_table_is_capped_where_wandb_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    package = pytest.importorskip("wandb", reason="wandb is not installed")
    assert wandb_tables.MOST == package.Table.MAX_ROWS
    monkeypatch.setattr(wandb_tables, "MOST", 3)
    record, boards, rows = suite([attacked(name, 100, flags=[flag("nan")]) for name in ("fgsm", "pgd", "apgd", "nes")])
    content = of_suite(record, boards, rows)
    assert len(content.tables["rows"].rows) == 3
    assert content.summary["left_out/rows"] == 1
    assert len(content.files["rows.jsonl"].splitlines()) == 4, "the artifact has all of them"


# --------------------------------------------------------------------------------------------------------------- charts


def points(chart: Chart, *names: str) -> list[tuple[Any, ...]]:
    at = [chart.table.columns.index(name) for name in names]
    return [tuple(row[i] for i in at) for row in chart.table.rows]


def drawn(board: Board, figure: Any) -> Chart:
    chart = of_board(replace(board, figure=figure))
    assert chart is not None
    assert set(chart.fields.values()) <= set(chart.table.columns)
    return chart


def test_every_kind_of_figure_has_a_chart(every: Any) -> None:
    _, boards, _ = every
    query = next(b for b in boards if isinstance(b.figure, Curves))
    chart = drawn(query, query.figure)
    for line in query.lines:
        expected = [(0.0, line.value("clean_acc")), *((float(k), line.value(f"robust_acc@{k}")) for k in (100, 1000))]
        found = [p[1:] for p in points(chart, "entry", "queries per image", "robust_acc") if p[0] == line.title]
        assert found[:3] == expected
    board = next(b for b in boards if isinstance(b.figure, Scatter))
    scatter = points(drawn(board, board.figure), "entry", "clean_acc", "robust_acc")
    values = {(x.title, x.value("clean_acc"), x.value("robust_acc")) for x in board.lines}
    assert set(scatter) == {v for v in values if None not in v}
    bars = points(drawn(board, Bars(("clean_acc", "clean"), ("robust_acc", "robust"))), "bar", "value")
    assert (f"{board.lines[0].title}: clean", board.lines[0].value("clean_acc")) in bars
    dots = points(drawn(board, Dots("attack", "robust_acc", "accuracy")), "entry", "robust_acc")
    assert set(dots) == {(t, r) for t, _, r in values if r is not None}
    polar = Polar((("robust_acc", 45.0), ("clean_acc", 90.0)), "", "title", "grey", ("a", "b", "c", "d"))
    assert (board.lines[0].title, 45.0, board.lines[0].value("robust_acc")) in points(
        drawn(board, polar), "entry", "degrees", "score"
    )
    assert drawn(board, object()).preset == "wandb/bar/v0", "a figure of another kind is drawn as bars"


def test_accuracy_over_the_budget_is_a_curve_of_several_boards() -> None:
    _, boards, _ = suite(over_budgets())
    (chart,) = further(boards).values()
    assert sorted(points(chart, "entry", "linf eps / 255", "robust_acc")) == [
        ("resnet / jpeg", 0.0, 0.9), ("resnet / jpeg", 4.0, 0.45), ("resnet / jpeg", 8.0, 0.25),
        ("resnet / none", 0.0, 0.9), ("resnet / none", 4.0, 0.3), ("resnet / none", 8.0, 0.1),
    ]  # fmt: skip
    assert further(suite([repaired("anp", "badnets", ca=0.9, asr=0.1)])[1]) == {}


# ------------------------------------------------------------------------------------------------------------- pictures


def test_pictures_are_those_beside_the_rows_and_not_too_many(every: Any) -> None:
    record, boards, rows = every
    png, asked = b"\x89PNG\r\n\x1a\n", []

    def pictures(cell: Cell, most: int) -> list[tuple[str, bytes]]:
        asked.append(cell.key)
        return [("7", png), ("8", b"<svg>"), ("9", png + b"0" * 2**18)]

    content = of_suite(record, boards, rows, pictures=pictures)
    shown = [picture for found in content.pictures.values() for picture in found]
    assert {file for _, file in shown} == {png}
    assert all(len(found) <= wandb_content.PER_BOARD for found in content.pictures.values())
    assert len(asked) < len(rows)
    assert of_suite(record, boards, rows, pictures=lambda cell, most: []).pictures == {}


# -------------------------------------------------------------------------------------------------------- smaller runs


def test_one_run_for_each_line(every: Any) -> None:
    record, boards, rows = every
    made = contents("per_line", record, boards, rows)
    assert len({c.id for c in made}) == len(made) == sum(len(board.lines) for board in boards)
    again = {c.id: c for c in contents("per_line", record, boards, rows)}
    for board in boards:
        for line in board.lines:
            (content,) = [c for c in made if c.config["board"] == board.id and c.name == line.title]
            assert again[content.id] == content
            for column in board.columns:
                if column.unit != "text":
                    assert content.summary.get(column.id) == line.value(column.id)
            assert (content.summary.get("rank_best"), content.summary.get("rank_worst")) == (line.rank or (None, None))


def test_one_run_for_each_row() -> None:
    row = attacked("pgd", 100, model="resnet18", defense="jpeg", flags=[flag("nan")])
    (content,) = contents("per_cell", *suite([row]))
    assert (content.id, content.name) == (row.cell.key[:16], "resnet18/jpeg/pgd")
    assert set(content.tags) == {"shapes", "white_box", "linf 8/255", "ok"}
    for name, value in row.metrics.items():
        assert content.summary[name] == value["value"]
        assert content.summary[f"{name}/low"] == value["low"]
    assert content.summary["flags"] == "nan"
    assert content.config["key"] == row.cell.key


def test_a_board_says_itself_what_is_shown_of_it() -> None:
    tracks = {row.cell.track for row in everything()} | {"corruption", "camouflage", "poisoning", "transfer", "patch"}
    files = [*Path(wandb_content.__file__ or "").parent.glob("wandb_*.py"), Path(wandb.__file__)]
    assert len(files) > 5
    for file in files:
        source = file.read_text(encoding="utf-8")
        assert [track for track in tracks if f'"{track}"' in source] == [], file.name
