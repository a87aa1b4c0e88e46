"""Exports hold the same numbers, and names of strangers do no harm in them."""

from __future__ import annotations

import csv
import io
import json

from rich.console import Console
from siegebench.leaderboard import export, rank, tables

from tests import rows as make
from tests.rows import attacked


def test_json_csv_and_markdown_hold_the_same_numbers() -> None:
    with make.controls(*make.PLANTED):
        boards = rank.boards(make.everything())
    data = json.loads(export.as_json(boards))["boards"]
    table = list(csv.DictReader(io.StringIO(export.as_csv(boards))))
    sections = export.as_markdown(boards).split("\n## ")
    assert len(table) == sum(len(b["lines"]) for b in data)
    assert len(sections) == len(data)
    lines = iter(table)
    for board, section in zip(data, sections, strict=True):
        shown = [r for r in section.splitlines() if r.startswith("| ")][1:]
        assert len(shown) == len(board["lines"])
        for entry, text in zip(board["lines"], shown, strict=True):
            row = next(lines)
            assert row["board"] == board["id"]
            assert [row["rank_best"], row["rank_worst"]] == [str(r) for r in entry["rank"] or ("", "")]
            assert all(row[name] == value for name, value in entry["names"].items())
            for name, number in entry["numbers"].items():
                assert isinstance(number["value"], (int, float))
                assert float(row[name]) == number["value"]
                if "low" in number:
                    assert [float(row[f"{name}.low"]), float(row[f"{name}.high"])] == [number["low"], number["high"]]
            primary = next(c for c in board["columns"] if c["id"] == board["primary"])
            value = entry["numbers"][board["primary"]]["value"]
            assert f"| {100 * value:.1f}" in text if primary["unit"] == "rate" else f"| {value:.3f}" in text


def test_strangers_names_do_no_harm_in_exports_and_terminals() -> None:
    evil = "=cmd|' /C calc'!A0\x1b[31m<b>[red]`x`|y"
    boards = rank.boards([attacked("autoattack", 90, model=evil)])
    assert next(csv.DictReader(io.StringIO(export.as_csv(boards))))["model"].startswith("'=cmd")
    cells = export.as_markdown(boards).splitlines()[-4].replace("\\|", "").split("|")
    assert len(cells) - 2 == len(boards[0].columns) + 4  # rank, model, defense, flags
    assert "<b>" not in export.as_markdown(boards)
    out = Console(width=200, file=io.StringIO(), force_terminal=False)
    tables.show(boards, out)
    text = out.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b" not in text
    assert "[red]" in text.replace("\n", "").replace(" ", "")
