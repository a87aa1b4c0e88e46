"""Submissions on the leaderboard: their rows beside those of a store, and where their entries rank. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from siegebench.cells import Result
from siegebench.leaderboard import rank
from siegebench.leaderboard.board import Board, Line, shown
from siegebench.submissions.validate import Submission, check, every


def beside(rows: Iterable[Result], submissions: Iterable[Submission]) -> list[Result]:
    """Rows that were measured here, and the submitted rows of all other cells."""
    measured = list(rows)
    known = {row.cell.key for row in measured if row.status != "error"}
    return measured + [row for s in submissions for row in s.flagged() if row.cell.key not in known]


def accepted(root: Path) -> list[Submission]:
    """The submissions below a folder, also those that other code of their entries made: their rows are marked as stale.

    Raises:
        ConfigError: with the file, when one of them is refused.
    """
    found = every(root)
    for submission in found:
        others = [row for other in found if other is not submission for row in other.rows.values()]
        check(submission, others, current=False)
    return found


@dataclass(frozen=True)
class Position:
    """A line of a board that has rows of a submission.

    Attributes:
        place: the rank, such as `2` or `1-3`; empty if it is not ranked.
        would: the rank that it has once its cells were run again by somebody else.
        of: number of entries that would be ranked then.
        metric, value, interval: the number that decides.
        flags: ids of the flags, without remarks and without the status.
        reasons: why it would not be ranked then.
    """

    board: str
    title: str
    entry: str
    place: str
    would: str
    of: int
    metric: str
    value: str
    interval: str
    flags: tuple[str, ...]
    reasons: tuple[str, ...]

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def positions(submission: Submission, others: Sequence[Result]) -> list[Position]:
    """Where the lines with rows of a submission rank among other rows, now and once it is reproduced."""
    keys = {row.cell.key for row in submission.rows.values()}
    now = _lines(rank.boards([*others, *submission.flagged()]), keys)
    return [
        _position(board, line, now.get((board.id, line.key)))
        for board in rank.boards([*others, *submission.rows.values()])
        for line in board.lines
        if keys & set(line.keys)
    ]


def _lines(boards: Iterable[Board], keys: set[str]) -> dict[tuple[str, tuple[str, ...]], Line]:
    return {(board.id, line.key): line for board in boards for line in board.lines if keys & set(line.keys)}


def _position(board: Board, line: Line, now: Line | None) -> Position:
    number = line.number(board.primary)
    ends = (number.low, number.high)
    return Position(
        board=board.id,
        title=board.title,
        entry=line.title,
        place=now.place if now is not None else "",
        would=line.place,
        of=len(board.ranked),
        metric=next((c.title for c in board.columns if c.id == board.primary), board.primary),
        value=shown(number.value, board.unit),
        interval="–".join(shown(end, board.unit) for end in ends) if None not in ends else "",
        flags=tuple(sorted({f.id for f in line.flags if f.severity != "info"})),
        reasons=line.reasons,
    )
