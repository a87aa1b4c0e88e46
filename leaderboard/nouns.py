"""What the inputs of a board are called: its texts are written for images, boards of other data get their own word."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from siegebench.cells import Result
from siegebench.titles import noun

from .board import Board, Column, Line

IMAGE = "image"
_WORD = re.compile(r"\b(an )?(image)(s?)\b", re.IGNORECASE)


def of_row(row: Result) -> str:
    """`image`, `text`, `sequence` or `film`; the camouflage track evaluates scenes, which it draws itself."""
    return "scene" if row.cell.track == "camouflage" else noun(row.cell.data)


def said(text: str, word: str) -> str:
    """A text that is written for images, with another word for them: `an image` as `a film`."""
    return text if word == IMAGE else _WORD.sub(lambda found: _instead(found, word), text)


def _instead(found: re.Match[str], word: str) -> str:
    article, image, plural = found.groups(default="")
    return f"{article[:1]}{' ' if article else ''}{word.capitalize() if image[0].isupper() else word}{plural}"


def in_own_words(board: Board, rows: Mapping[str, Result]) -> Board:
    """The board with the word of its data in all that is told of it; names of entries and ids stay as they are.

    Args:
        rows: by key.
    """
    word = next((of_row(rows[key]) for line in board.lines for key in line.keys), IMAGE)
    if word == IMAGE:
        return board
    return replace(
        board,
        noun=word,
        about=said(board.about, word),
        facts={_fact(name, word, board): value for name, value in board.facts.items()},
        columns=tuple(_column(column, word) for column in board.columns),
        lines=tuple(_line(line, word) for line in board.lines),
        notes=tuple(said(note, word) for note in board.notes),
        result=said(board.result, word),
    )


def _fact(name: str, word: str, board: Board) -> str:
    """The name of a fact, unless another has it: the scenes that textures are made on."""
    own = said(name, word)
    return name if own in board.facts else own


def _column(column: Column, word: str) -> Column:
    title = column.title if column.group else said(column.title, word)
    return replace(column, title=title, help=said(column.help, word))


def _line(line: Line, word: str) -> Line:
    return replace(
        line,
        reasons=tuple(said(reason, word) for reason in line.reasons),
        flags=tuple(replace(flag, evidence=said(flag.evidence, word)) for flag in line.flags),
        uncaught=said(line.uncaught, word),
    )
