"""The rows that lie in leaderboard/rows, their page, and what docs/findings.md says of them."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

import pytest
from siegebench.leaderboard import export, rank
from siegebench.leaderboard.board import Board

from siegebench.cells import Result
from siegebench.reporting import report, stored

ROOT = Path(__file__).resolve().parent.parent
STORE = ROOT / "leaderboard"
MOST = 20 * 2**20  # bytes
LEVELS = {"40"}  # a share of letters that an attack replaces, not a figure


@pytest.fixture(scope="module")
def kept() -> list[Result]:
    return stored(STORE)


@pytest.fixture(scope="module")
def boards(kept: list[Result]) -> dict[str, Board]:
    return {board.id: board for board in rank.boards(kept)}


def test_every_row_says_where_when_and_by_which_commit_it_was_measured(kept: list[Result]) -> None:
    for row in kept:
        assert row.status != "error", row.cell.title
        assert re.fullmatch(r"[0-9a-f]{40}", str(row.env["commit"])), (row.cell.title, row.env["commit"])
        assert all((row.env["device"], row.env["torch"], row.given["suite"]["name"])), row.cell.title
        assert datetime.fromisoformat(row.timing["started"]) <= datetime.fromisoformat(row.timing["ended"])


def test_the_rows_are_few_bytes_and_nothing_else_lies_there() -> None:
    files = [path for path in (STORE / "rows").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < MOST
    assert {path.suffix for path in files} <= {".json", ".npz", ".png"}


def test_the_page_is_made_of_these_rows() -> None:
    written = (ROOT / "docs" / "leaderboard.html").read_text(encoding="utf-8")
    assert written == report(STORE, "html"), "run `make board`"


def test_the_findings_say_what_the_rows_say(boards: dict[str, Board]) -> None:
    """Every percentage and decimal of a paragraph stands in one of the boards that the paragraph links."""
    text = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")
    checked = 0
    for paragraph in re.split(r"\n\s*\n", text):
        linked = re.findall(r"leaderboard\.html#([\w-]+)", paragraph)
        assert set(linked) <= boards.keys(), set(linked) - boards.keys()
        shown = {n for name in linked for n in re.findall(r"\d+(?:\.\d+)?", export.as_markdown([boards[name]]))}
        words = re.sub(r"\(leaderboard\.html#[\w-]+\)", "", paragraph)
        for number in {*re.findall(r"\d+\.\d+", words), *re.findall(r"(?<![.\d])(\d+) %", words)} - LEVELS:
            assert number in shown, (number, paragraph)
            checked += 1
    assert checked >= 20
