"""The status of submitted rows, as a column of the boards that have any."""

from __future__ import annotations

from dataclasses import replace

from .board import Board, Column, Line

STATUSES = {"claimed": "claimed", "smoke_checked": "smoke-checked", "reproduced": "reproduced"}  # flags, weakest first
HERE = "measured here"
COLUMN = Column(
    "run_by", "Status", "text", "claimed: only its author has run it, and it is not ranked. smoke-checked: others have "
    "run some of its cells again, and they agree. reproduced: all of them.", "",
)  # fmt: skip


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
