"""Boards as terminal tables, readable in 100 columns."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from .board import Board, Column, Line, shown
from .words import between

COLOURS = {"fail": "red", "flag": "yellow", "info": "dim"}
FILE_WIDTH = 120  # width for pipes and files


def stdout() -> Console:
    """A console of the width of the terminal, or of COLUMNS; without both it is FILE_WIDTH wide."""
    return Console(width=None if sys.stdout.isatty() or os.environ.get("COLUMNS") else FILE_WIDTH)


def show(boards: Iterable[Board], console: Console) -> None:
    """Print every board with its notes, reasons and flags."""
    boards = list(boards)
    if not boards:
        console.print("No rows yet: nothing to rank.")
    for board in boards:
        console.print(_title(board))
        console.print(Text(plain(board.result)))
        console.print(_table(board))
        console.print(Padding(_remarks(board), (0, 0, 1, 2)))


def plain(text: str) -> str:
    """Replace control characters, which a terminal would execute; rows may come from untrusted sources."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _title(board: Board) -> Text:
    title = Text(plain(board.title), style="bold")
    facts = [f"{name} {value}" for name, value in board.facts.items() if name in ("split", board.nouns, "population")]
    return title.append(f"  {plain(', '.join(facts))}", style="not bold dim")


def _table(board: Board) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), expand=False)
    table.add_column("#", justify="right", no_wrap=True)
    for name in board.lines[0].names if board.lines else ():
        longest = max(len(line.names[name]) for line in board.lines)
        table.add_column(name.capitalize(), overflow="fold", min_width=min(longest, 20))
    columns = [c for c in board.columns if c.main]
    for column in columns:
        text = column.unit == "text"
        table.add_column(column.title, justify="left" if text else "right", no_wrap=not text, overflow="fold")
    table.add_column("Flags" if any(line.flags for line in board.lines) else "", overflow="fold")
    for line in board.lines:
        style = "" if line.rank else "dim"
        names = [Text(plain(name)) for name in line.names.values()]
        cells = [_cell(line, column, column.id == board.primary) for column in columns]
        place = Text(line.place or ("ctl" if line.control else "–"), style="bold" if line.rank else "")
        table.add_row(place, *names, *cells, _flags(line), style=style)
    return table


def _cell(line: Line, column: Column, primary: bool) -> Text:
    if column.unit == "text":
        return Text(plain(line.texts.get(column.id, "–")))
    number = line.number(column.id)
    text = Text(shown(number.value, column.unit), style="bold" if primary and line.rank else "")
    if primary and number.value is not None and number.low is not None and number.high is not None:
        low, high = (f"{100 * end:.0f}" if column.unit == "rate" else f"{end:.2f}" for end in (number.low, number.high))
        text.append(f" [{between(low, high)}]", style="not bold dim")
    return text


def _flags(line: Line) -> Text:
    worst = {}
    for flag in reversed(line.flags):  # the worst flag of each id comes first in a line
        if flag.severity != "info":
            worst[flag.id] = flag.severity
    return Text(" ").join(Text(plain(name), style=COLOURS[worst[name]]) for name in sorted(worst))


def _remarks(board: Board) -> Text:
    parts: list[Text] = []
    for line in board.unranked:
        mark = "control" if line.control else "not ranked"
        reasons = "; ".join(line.reasons[1:] if line.control else line.reasons)
        told = "; ".join(part for part in (line.verdict, reasons) if part)
        colour = "red" if line.uncaught else "dim"
        parts.append(Text(f"{mark}: {plain(line.title)}: {plain(told)}", style=colour))
    parts += [Text(plain(note), style="dim") for note in board.notes]
    return Text("\n").join(parts)
