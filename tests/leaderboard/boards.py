"""Boards and lines by name, and rows that many tests of ranking need."""

from __future__ import annotations

from typing import Any

from siegebench.leaderboard import rank
from siegebench.leaderboard.board import Board, Line

from siegebench.cells import Result
from tests.rows import attacked, measured, named


def only(results: list[Result]) -> Board:
    boards = rank.boards(results)
    assert len(boards) == 1, [b.title for b in boards]
    return boards[0]


def line(board: Board, *names: str) -> Line:
    found = [x for x in board.lines if set(names) <= set(x.names.values())]
    assert len(found) == 1, (names, [x.title for x in board.lines])
    return found[0]


def ranked_row(attack: str, right: Any, defense: str = "none", **more: Any) -> list[Result]:
    """The required attack, and the adaptive one where there is a defense."""
    first = attacked(attack, right, defense=defense, **more)
    if defense == "none":
        return [first]
    return [first, attacked(named("eot", attack=named("apgd")), right, defense=defense, adaptive=True, **more)]


def scaled(pgd: int, worst: int, flags: list[dict[str, str]]) -> list[Result]:
    return [
        attacked("pgd", pgd, defense="logit_scaling"), attacked("autoattack", worst, defense="logit_scaling"),
        measured("logit_scaling", flags), attacked("autoattack", 3),
    ]  # fmt: skip
