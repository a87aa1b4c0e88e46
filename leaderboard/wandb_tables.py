"""Boards, flags and rows as plain tables for W&B. Imports no wandb."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from siegebench.cells import Result

from .board import SHORT, Board, metric, what

MOST = 10_000  # rows of a table that W&B shows


@dataclass(frozen=True)
class Sheet:
    """A table: names of the columns, and rows of numbers, texts and None.

    Attributes:
        left_out: rows above the limit of W&B, which only the artifact has.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    left_out: int = 0


def sheet(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Sheet:
    """A table with at most as many rows as W&B shows."""
    every = tuple(tuple(row) for row in rows)
    return Sheet(tuple(columns), every[:MOST], max(0, len(every) - MOST))


def board_table(board: Board) -> Sheet:
    """A ranked board: rank group, entry, columns with their intervals, flags, why it is not ranked. Rates in [0, 1]."""
    names = list(board.lines[0].names) if board.lines else []
    texts = {c.id for c in board.columns if c.unit == "text"}
    figures = [c.id for c in board.columns if c.unit != "text"]
    wide = {c for c in figures if any(line.number(c).low is not None for line in board.lines)}
    columns = [c for column in board.columns for c in _heads(column.id, column.id in wide)]
    rows = []
    for line in board.lines:
        cells: list[Any] = []
        for column in board.columns:
            if column.id in texts:
                cells.append(line.texts.get(column.id))
            else:
                number = line.number(column.id)
                ends = [number.low, number.high] if column.id in wide else []
                cells += [_real(v) for v in (number.value, *ends)]
        flags = ", ".join(dict.fromkeys(f.id for f in line.flags if f.severity != "info"))
        why = "; ".join((*line.reasons, *filter(None, [line.verdict])))
        keys = " ".join(key[:SHORT] for key in line.keys)
        rows.append((line.place, line.status, *line.names.values(), *cells, flags, why, keys))
    return sheet(("rank", "status", *_apart(names, columns), *columns, "flags", "why not ranked", "rows"), rows)


def _heads(id: str, wide: bool) -> list[str]:
    return [id, f"{id} low", f"{id} high"] if wide else [id]


def _apart(names: Sequence[str], columns: Sequence[str]) -> list[str]:
    """Names of the entries that are no name of a column."""
    return [f"{name} " if name in columns else name for name in names]


def _real(value: float | None) -> float | None:
    return None if value is None else float(value)


def flag_table(boards: Iterable[Board]) -> Sheet:
    """Every flag with its evidence, worst first on each board."""
    columns = ("board", "entry", "severity", "flag", "evidence", "row")
    return sheet(
        columns,
        (
            (board.title, line.title, f.severity, f.id, f.evidence, f.key[:SHORT])
            for board in boards
            for line in board.lines
            for f in line.flags
        ),
    )


def row_table(boards: Iterable[Board], rows: Iterable[Result]) -> Sheet:
    """Every row, with the metric that counts on its board."""
    main = {key: (b.title, b.row_metric) for b in boards for line in b.lines for key in line.keys}
    columns = (
        "row", "track", "board", "model", "defense", "what", "seed", "status", "metric", "value", "low", "high",
        "flags", "seconds",
    )  # fmt: skip
    return sheet(columns, (_row(row, *main.get(row.cell.key, ("", ""))) for row in rows))


def _row(row: Result, board: str, name: str) -> tuple[Any, ...]:
    cell, found = row.cell, row.metrics.get(name, {})
    labels = cell.labels
    flags = ", ".join(dict.fromkeys(f["id"] for f in row.flags if f["severity"] != "info"))
    return (
        cell.key[:SHORT], cell.track, board, labels["model"], labels.get("defense"), what(row), cell.seed, row.status,
        name, _real(metric(row, name)), _real(found.get("low")), _real(found.get("high")), flags,
        _real(row.timing.get("seconds")),
    )  # fmt: skip
