"""Boards that would share a title name what they differ in, such as the number of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .board import Board, group

LAST = "data hash"  # it says least
BARE = "data parameters"  # named without a word


def told_apart(boards: Sequence[Board]) -> list[Board]:
    """The boards, in order, each with a title of its own."""
    titles: dict[str, str] = {}
    for alike in group(boards, lambda board: board.title).values():
        names = _telling(alike) if len(alike) > 1 else []
        titles |= {board.id: ", ".join([board.title, *_said(board, names)]) for board in alike}
    return [replace(board, title=titles[board.id]) for board in boards]


def _said(board: Board, names: Sequence[str]) -> list[str]:
    counts = (board.nouns, f"training {board.nouns}")
    found = [(name, board.facts[name]) for name in names if name in board.facts]
    return [f"{of} {name}" if name in counts else of if name == BARE else f"{name} {of}" for name, of in found]


def _telling(boards: Sequence[Board]) -> list[str]:
    """The facts that tell the boards apart: one if that is enough, else as few as a search from the front finds."""
    names = [name for name in dict.fromkeys(name for board in boards for name in board.facts) if name != LAST] + [LAST]
    for name in names[:-1]:
        if _sorts(boards, [name]) == len(boards):
            return [name]
    chosen: list[str] = []
    for name in names:
        if _sorts(boards, [*chosen, name]) > _sorts(boards, chosen):
            chosen.append(name)
    return chosen


def _sorts(boards: Sequence[Board], names: Sequence[str]) -> int:
    return len({tuple(board.facts.get(name) for name in names) for board in boards})
