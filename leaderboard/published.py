"""Figures that others published, beside the numbers that were measured here. They rank nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from siegebench.cells import eps_text
from siegebench.metrics import find
from siegebench.published import Published

from .board import Board, Column, Line, Number, shown

MOST = 8  # figures named below a table
HELP = (
    "The same figure as its authors or another benchmark published it, on their images: not measured here, not ranked."
)


def with_published(board: Board, figures: Sequence[Published]) -> Board:
    """The board with a column for figures of its lines, and a note for each figure on its data and threat.

    A figure belongs to a line if the user named the model or the defense of the line when it was imported.
    """
    mine = [figure for figure in figures if _belongs(board, figure)]
    if not mine:
        return board
    beside = {line.key: [f for f in mine if f.metric == board.primary and _names(line, f)] for line in board.lines}
    lines = tuple(_with(line, beside[line.key]) for line in board.lines)
    columns = board.columns
    if any(beside.values()):
        number = Column("published", "Published", board.unit, HELP, "")
        source = Column("published_by", "Published by", "text", "Source of the published figure.", "", main=False)
        at = next((i for i, c in enumerate(columns) if c.id == board.primary), 0) + 1
        columns = (*columns[:at], number, source, *columns[at:])
    told = [_said(figure) for figure in mine]
    more = [f"published, not measured here: and {len(told) - MOST} more"] if len(told) > MOST else []
    return replace(board, lines=lines, columns=columns, notes=(*board.notes, *told[:MOST], *more))


def _belongs(board: Board, figure: Published) -> bool:
    if figure.data != board.facts.get("data") or figure.track != board.track:
        return False
    threat = board.facts.get("threat")
    if threat is None:
        return figure.norm is None
    return figure.eps is not None and threat == f"{figure.norm} {eps_text(figure.eps)}"


def _names(line: Line, figure: Published) -> bool:
    """Whether a line has the names that the user gave; a name may be followed by parameters in parentheses."""
    return bool(figure.here) and all(
        line.names.get(slot) == name or line.names.get(slot, "").startswith(f"{name} (")
        for slot, name in figure.here.items()
    )


def _with(line: Line, figures: Sequence[Published]) -> Line:
    if not figures:
        return line
    # several for one line: the one with the lowest robust accuracy is the closest to a worst case
    figure = min(figures, key=lambda f: f.value)
    texts = {**line.texts, "published_by": f"{figure.entry}: {figure.source}"}
    return replace(line, numbers={**line.numbers, "published": Number(figure.value)}, texts=texts)


def _said(figure: Published) -> str:
    metric = find(figure.metric)
    title = metric.title if metric is not None else figure.metric
    value = shown(figure.value, "rate" if metric is not None and metric.unit == "rate" else "score")
    under = f" under {figure.attack}" if figure.attack else ""
    note = f"; {figure.note}" if figure.note else ""
    return f"published, not measured here: {figure.entry}: {title} {value}{under} ({figure.source}{note})"
