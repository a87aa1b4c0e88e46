"""Ranked boards and undetected controls, computed from rows in any order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from siegebench.cells import Result
from siegebench.published import Published

from . import (
    backdoor,
    camouflage,
    certified,
    corruption,
    detection,
    evasion,
    extraction,
    poisoning,
    privacy,
    published,
    study,
    submitted,
    supervisors,
)
from .alike import told_apart
from .board import Board, unique
from .nouns import in_own_words


def boards(results: Iterable[Result], figures: Sequence[Published] = ()) -> list[Board]:
    """One board for each set of comparable rows.

    Tracks with attacked images: one board per data slice and threat. Backdoor, poisoning and detection tracks: one
    board per data slice and architecture. Rows that belong to no board (a track without entries) are left out.

    Args:
        figures: that others published; shown beside the lines, and ranked by nobody.
    """
    rows = unique(results)
    known = {row.cell.key: row for row in rows}
    found = [published.with_published(submitted.with_status(b), figures) for b in submitted.apart(rows, _boards)]
    return told_apart([in_own_words(board, known) for board in found])


def _boards(rows: Sequence[Result]) -> list[Board]:
    return [
        *evasion.boards(rows), *backdoor.boards(rows), *detection.boards(rows), *supervisors.boards(rows),
        *corruption.boards(rows), *poisoning.boards(rows), *camouflage.boards(rows),
        *certified.boards(rows), *extraction.boards(rows), *privacy.boards(rows), *study.boards(rows),
    ]  # fmt: skip


def uncaught_controls(results: Iterable[Result]) -> list[str]:
    """One sentence per planted control that the checks did not detect. If there is any, the run has failed.

    A planted defense or model must have a visible flag, and its worst case must be lower than its robust accuracy under
    plain PGD on cross-entropy by more than `flags.GAP`. A planted attack must have a visible flag.
    """
    return [
        f"control {line.title} was not caught ({board.title}): {line.uncaught}"
        for board in boards(results)
        for line in board.lines
        if line.uncaught
    ]


def broken_certificates(results: Iterable[Result]) -> list[str]:
    """One sentence per certifier whose certificates an attack broke. If there is any, the run has failed."""
    return certified.broken(certified.boards(unique(results)))
