"""The figures of boards as tables with a chart of W&B. Imports no wandb.

Each chart uses one of the presets that every W&B server has: lines, points, bars.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .board import Board, Line
from .figures import Bars, Curves, Figure, Polar, Scatter
from .wandb_tables import Sheet, sheet

Preset = Literal["wandb/line/v0", "wandb/scatter/v0", "wandb/bar/v0"]


@dataclass(frozen=True)
class Chart:
    """A table and how W&B draws it.

    Attributes:
        fields: the columns of the table by the names that the preset has for them.
    """

    title: str
    preset: Preset
    fields: dict[str, str]
    table: Sheet


def of_board(board: Board) -> Chart | None:
    """The figure of a board; a bar for each entry if W&B has no chart of its kind. None if there is nothing to draw."""
    return _drawn(board.figure, board)


def further(boards: Iterable[Board]) -> dict[str, Chart]:
    """The further figures of boards by an id; those that several boards share, once."""
    out: dict[str, Chart] = {}
    for board in boards:
        for number, figure in enumerate(board.also, 1):
            chart = _drawn(figure, board)
            known = [(c.fields, c.table) for c in out.values()]
            if chart is not None and (chart.fields, chart.table) not in known:
                out[f"{board.id}-{number}"] = chart
    return out


def _drawn(figure: Figure, board: Board) -> Chart | None:
    lines = [line for line in board.lines if line.value(board.primary) is not None]
    match figure:
        case Scatter() as drawn:
            chart = _scatter(drawn, board, lines)
        case Curves() as drawn:
            chart = _curves(drawn, board, lines)
        case Bars() as drawn:
            chart = _pairs(drawn, board, lines)
        case Polar() as drawn:
            chart = _polar(drawn, lines)
        case _:
            chart = _bars(board, lines)
    return chart if chart.table.rows else None


def _title(board: Board, column: str) -> str:
    return next((c.title for c in board.columns if c.id == column), column)


def _scatter(drawn: Scatter, board: Board, lines: Sequence[Line]) -> Chart:
    columns = ("entry", "status", drawn.x, drawn.y, "low", "high")
    rows = []
    for line in lines:
        x, y = line.value(drawn.x), line.number(drawn.y)
        if x is not None:
            rows.append((line.title, line.status, x, y.value, y.low, y.high))
    title = f"{_title(board, drawn.y)} against {_title(board, drawn.x)}. {board.title}"
    return Chart(title, "wandb/scatter/v0", {"x": drawn.x, "y": drawn.y}, sheet(columns, rows))


def _curves(drawn: Curves, board: Board, lines: Sequence[Line]) -> Chart:
    at = ((drawn.start[0], 0), *drawn.columns)
    rows = [(ln.title, float(x), v) for ln in lines for column, x in at if (v := ln.value(column)) is not None]
    name = _title(board, board.primary)
    return _line(f"{name} over {drawn.title}. {board.title}", drawn.title, board.primary, rows)


def _line(title: str, x: str, y: str, rows: Iterable[Sequence[Any]]) -> Chart:
    """Curves from rows of entry, x, y and anything more."""
    rows = list(rows)
    more = ("low", "high") if rows and len(rows[0]) > 3 else ()
    fields = {"x": x, "y": y, "stroke": "entry"}
    return Chart(title, "wandb/line/v0", fields, sheet(("entry", x, y, *more), rows))


def _pairs(drawn: Bars, board: Board, lines: Sequence[Line]) -> Chart:
    pair = (drawn.good, drawn.bad)
    rows = [
        (f"{line.title}: {text}", line.title, text, v)
        for line in lines
        for column, text in pair
        if (v := line.value(column)) is not None
    ]
    title = f"{' and '.join(text for _, text in pair)}. {board.title}"
    table = sheet(("bar", "entry", "measure", "value"), rows)
    return Chart(title, "wandb/bar/v0", {"label": "bar", "value": "value"}, table)


def _polar(drawn: Polar, lines: Sequence[Line]) -> Chart:
    rows = [
        (f"{line.title}{name}", float(degrees), v)
        for line in lines
        for before, name in (("", ""), (drawn.before, f": {drawn.other}"))
        for column, degrees in drawn.columns
        if (v := line.value(before + column)) is not None
    ]
    return _line(drawn.title, "degrees", "score", rows)


def _bars(board: Board, lines: Sequence[Line]) -> Chart:
    numbers = [(line, line.number(board.primary)) for line in lines]
    rows = [(line.title, line.status, n.value, n.low, n.high) for line, n in numbers]
    title = f"{_title(board, board.primary)}. {board.title}"
    table = sheet(("entry", "status", board.primary, "low", "high"), rows)
    return Chart(title, "wandb/bar/v0", {"label": "entry", "value": board.primary}, table)
