"""Reports by code: every panel asks for something that the run has; a report that exists is updated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from siegebench.leaderboard import wandb_report, wandb_session
from siegebench.leaderboard.board import Board
from siegebench.leaderboard.wandb_content import contents, of_suite

from tests.rows import DATA, attacked, everything
from tests.wandb_kit import no_network, over_budgets, suite
from tests.wandb_server import ENTITY, serving

pytest.importorskip("wandb_workspaces", reason="wandb-workspaces is not installed")
pytestmark = pytest.mark.usefixtures(no_network.__name__)


def sent(report: Any) -> dict[str, Any]:
    whole: dict[str, Any] = json.loads(wandb_report.as_json(report))
    return whole


def panels(value: Any) -> list[dict[str, Any]]:
    """Every panel below."""
    if isinstance(value, list):
        return [panel for part in value for panel in panels(part)]
    if not isinstance(value, dict):
        return []
    return [value] if "viewType" in value else [panel for part in value.values() for panel in panels(part)]


def texts(value: Any) -> str:
    """All text below."""
    if isinstance(value, list):
        return "\n".join(map(texts, value))
    if not isinstance(value, dict):
        return ""
    return str(value["text"]) if "text" in value else "\n".join(texts(part) for part in value.values())


def asked(panel: dict[str, Any]) -> set[str]:
    """The metrics, tables and pictures that a panel asks for."""
    config = panel["config"]
    if panel["viewType"] == "Weave":
        return {config["panel2Config"]["exp"]["fromOp"]["inputs"]["key"]["val"]}
    if panel["viewType"] == "Vega2":
        fields = config["userQuery"]["queryFields"][0]["fields"]
        return {arg["value"] for field in fields for arg in field.get("args", ()) if arg["name"] == "tableKey"}
    if panel["viewType"] == "Media Browser":
        return set(config["mediaKeys"])
    if panel["viewType"] == "Parallel Coordinates Plot":
        return {column["accessor"].removeprefix("summary:") for column in config["columns"]}
    return {*config["metrics"], *([config["xAxis"]] if "xAxis" in config else [])}


@pytest.fixture(scope="module")
def every() -> tuple[Any, list[Board], list[Any]]:
    return suite([*everything(), *over_budgets()])


def test_each_panel_asks_for_what_the_run_of_the_suite_has(every: Any) -> None:
    record, boards, rows = every
    content = of_suite(record, boards, rows, pictures=lambda cell, most: [("1", b"\x89PNG\r\n\x1a\n")])
    spec = sent(wandb_report.build(record, content, boards))["spec"]
    found = [asked(panel) for panel in panels(spec)]
    assert all(found)
    wanted = set().union(*found)
    assert wanted <= content.names
    assert {*content.tables, *content.pictures, *(f"{name}_table" for name in content.charts)} <= wanted
    for panel in panels(spec):
        if panel["viewType"] == "Vega2":
            (table,) = asked(panel)
            chart = content.charts[table.removesuffix("_table")]
            assert panel["config"]["panelDefId"] == chart.preset
            assert set(panel["config"]["fieldSettings"].values()) <= set(chart.table.columns)


def test_each_panel_asks_for_what_the_runs_of_the_lines_have(every: Any) -> None:
    record, boards, rows = every
    names: dict[str, set[str]] = {}
    for content in contents("per_line", record, boards, rows):
        names.setdefault(content.config["board"], set()).update(content.names)
    spec = sent(wandb_report.build(record, of_suite(record, boards, rows), boards, "per_line"))["spec"]
    grids = [block for block in spec["blocks"] if block["type"] == "panel-grid"]
    assert len(grids) == len(boards)
    for board, grid in zip(boards, grids, strict=True):
        assert board.id in json.dumps(grid["metadata"]["runSets"]), "its runs are those of this board"
        assert set().union(*(asked(panel) for panel in panels(grid))) <= names[board.id]


def test_a_report_about_texts_calls_them_texts() -> None:
    record, boards, rows = suite([attacked("autoattack", 20, data={**DATA, "kind": "text"})])
    said = texts(sent(wandb_report.build(record, of_suite(record, boards, rows), boards))["spec"])
    assert "texts 200" in said
    assert "image" not in said


def test_the_report_says_what_the_page_says(every: Any) -> None:
    record, boards, rows = every
    report = sent(wandb_report.build(record, of_suite(record, boards, rows), boards))
    said = texts(report["spec"])
    for board in boards:
        assert board.title in said
        assert board.result in said
        assert board.about in said
        flags = [f for line in board.lines for f in line.flags if f.severity != "info"]
        for flag in sorted(flags, key=lambda f: f.order())[: wandb_report.MOST_FLAGS]:
            assert flag.evidence in said
        for line in board.unranked:
            assert all(reason in said for reason in line.reasons)
        for column in board.columns:
            assert column.group or not column.help or f"({column.id}): " in said
    assert record.id in json.dumps(report["spec"]["blocks"])


def test_it_is_sent_once_and_then_updated(every: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record, boards, rows = every
    content = of_suite(record, boards[:1], rows)
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    with serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        wandb_session.leave()
        assert wandb_session.default_entity() == ENTITY
        made = [wandb_report.build(record, content, boards[:1], entity=ENTITY) for _ in range(2)]
        first, url = wandb_report.save(made[0])
        assert url.startswith(f"{server.url}/{ENTITY}/siegebench/reports/")
        second, _ = wandb_report.save(made[1], first)
        assert first == second
        assert list(server.views) == [first]
        assert json.loads(server.views[first]["spec"])["blocks"]
    with pytest.raises(wandb_report.ReportError, match="did not take the report"):
        wandb_report.save(wandb_report.build(record, content, boards[:1], entity=ENTITY), "gone")
    wandb_session.leave()
