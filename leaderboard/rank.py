"""From rows to ranked boards, and the controls that nobody caught: functions of the rows, whatever their order."""

from __future__ import annotations

from collections.abc import Iterable

from siegebench.cells import Result

from . import backdoor, corruption, detection, evasion
from .board import Board, unique


def boards(results: Iterable[Result]) -> list[Board]:
    """One board for everything that may be compared.

    White box and query: a slice of the data and a threat. Backdoor and detection: a slice of the data and an
    architecture. Measured rows that belong to no board (a track without entries) are left out.
    """
    rows = unique(results)
    return [*evasion.boards(rows), *backdoor.boards(rows), *detection.boards(rows), *corruption.boards(rows)]


def uncaught_controls(results: Iterable[Result]) -> list[str]:
    """One sentence for each planted control that the checks did not catch; the run has then failed.

    A planted defense or model must carry a visible flag, and the worst case must undercut plain PGD on cross-entropy by
    `flags.GAP`. A planted attack must carry a visible flag.
    """
    return [
        f"control {line.title} was not caught ({board.title}): {line.uncaught}"
        for board in boards(results)
        for line in board.lines
        if line.uncaught
    ]
