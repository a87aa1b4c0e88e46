"""Submitted rows on the boards: their status as a column, and claimed ones apart from everything that was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from siegebench.cells import Result
from siegebench.metrics import find

from .board import Board, Column, Line, Number, shown, stored, what

STATUSES = {"claimed": "claimed", "smoke_checked": "smoke-checked", "reproduced": "reproduced"}  # flags, weakest first
HERE = "measured here"
MOST = 8  # claimed rows named below a table
COLUMN = Column(
    "run_by", "Status", "text", "claimed: only its author has run it, and it is not ranked. smoke-checked: others have "
    "run some of its cells again, and they agree. reproduced: all of them.", "",
)  # fmt: skip


def apart(rows: Sequence[Result], make: Callable[[Sequence[Result]], list[Board]]) -> list[Board]:
    """The boards of `make`, in which claimed rows change no other line: not its number, its rank or its flags.

    A line of claimed rows alone is listed last. A claimed row of a line that was also measured, such as a new attack on
    a known model, is named below the table.
    """
    claimed = {row.cell.key: row for row in rows if any(flag["id"] == "claimed" for flag in row.flags)}
    if not claimed:
        return make(rows)
    measured = {board.id: board for board in make([row for row in rows if row.cell.key not in claimed])}
    return [
        _joined(measured[board.id], board, claimed) if board.id in measured else board for board in make(rows)
    ]  # fmt: skip


def _joined(board: Board, whole: Board, claimed: dict[str, Result]) -> Board:
    """A board of measured rows, with the lines of claimed ones from the board of all rows."""
    alone = tuple(line for line in whole.lines if line.keys and claimed.keys() >= set(line.keys))
    told = [
        _said(claimed[key], line, whole)
        for line in whole.lines
        if line not in alone
        for key in line.keys
        if key in claimed
    ]
    more = [f"claimed, not counted: and {len(told) - MOST} more"] if len(told) > MOST else []
    known = {column.id for column in board.columns}
    filled = {name for line in alone for name in (*line.numbers, *line.texts)}
    columns = (*board.columns, *(c for c in whole.columns if c.id in filled - known))
    notes = (*board.notes, *told[:MOST], *more)
    return replace(board, lines=(*board.lines, *alone), columns=columns, notes=notes)


def _said(row: Result, line: Line, board: Board) -> str:
    number, metric = stored(row, board.row_metric) if row.metrics else Number(None), find(board.row_metric)
    title = metric.title if metric is not None else board.row_metric
    value = shown(number.value, "rate" if metric is not None and metric.unit == "rate" else "score")
    evidence = next(flag["evidence"] for flag in row.flags if flag["id"] == "claimed")
    return f"claimed, not counted: {what(row)} on {line.title}: {title} {value} ({evidence[:160]})"


def with_status(board: Board) -> Board:
    """The board with the column, if rows of any line were submitted; the weakest status of its rows stands."""
    if not any(flag.id in STATUSES for line in board.lines for flag in line.flags):
        return board
    lines = tuple(replace(line, texts={**line.texts, COLUMN.id: _status(line)}) for line in board.lines)
    first = [board.columns[0]] if board.columns else []
    return replace(board, lines=lines, columns=(*first, COLUMN, *board.columns[1:]))


def _status(line: Line) -> str:
    found = {flag.id for flag in line.flags}
    return next((text for name, text in STATUSES.items() if name in found), HERE)
