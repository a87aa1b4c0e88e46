"""The page: one self-contained HTML file with optional JavaScript. Every number links to its rows.

Rows may come from untrusted sources. The template escapes all text, links lead only within the page, and the content
security policy allows only the page's own script. Rows lie in <noscript>: without JavaScript they are part of the page,
with it they cost nothing until somebody opens them.
A row stands on the page once, and the meaning of a metric once for each board.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from itertools import chain
from typing import Any

from jinja2 import BaseLoader, Environment, StrictUndefined
from markupsafe import Markup

from siegebench.cells import PROTOCOL, Cell, Result

from . import export
from .board import Board, unique, what
from .cards import as_card, contents
from .details import details
from .glossary import Glossary

PICTURES, PICTURE_BYTES, PAGE_BYTES = 12, 2**18, 2**23  # of a row, of one picture, of all pictures of a page
STRIP = 12  # pictures beside the table of a board
CARDS = 12  # more boards than these are listed, a line each


class _Bundled(BaseLoader):
    """Loads templates from the folder of this file, in a checkout and in a wheel."""

    def get_source(self, environment: Environment, template: str) -> tuple[str, str, Any]:
        return files(__package__).joinpath(template).read_text(encoding="utf-8"), template, lambda: True


@cache
def _templates() -> Environment:
    # autoescape=True, never select_autoescape: that decides by file extension and would not escape .j2
    environment = Environment(
        loader=_Bundled(), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    # between tags quotes need no escape, and a cell in JSON has a hundred of them
    environment.filters["between_tags"] = lambda text: Markup(html.escape(text, quote=False))
    return environment


Pictures = Callable[[Cell, int], Sequence[tuple[str, bytes]]]
Ids = Callable[[Cell], Iterable[int]]


def render(
    boards: Sequence[Board], results: Iterable[Result], pictures: Pictures | None = None, ids: Ids | None = None
) -> str:
    """Render the page. The result does not depend on the order of the rows.

    Args:
        boards: from `rank.boards`.
        results: the rows of the boards; all are on the page.
        pictures: returns the PNG files beside a row, at most so many of them, each with its name.
        ids: returns the names of the images of a row, in the order of its outcomes.
    """
    rows = {row.cell.key: row for row in unique(results)}
    beside = {} if pictures is None else _pictures(rows, pictures)
    main = {key: board.row_metric for board in boards for line in board.lines for key in line.keys}
    flags = [f.id for board in boards for line in board.lines for f in line.flags]
    glossary = Glossary(rows.values(), [*flags, *(str(f["id"]) for row in rows.values() for f in row.flags)])
    environment = _templates()
    cards = [{**as_card(board, glossary), "index": i} for i, board in enumerate(boards)]
    listed = contents(cards) if len(cards) > CARDS else []
    # the boards of a page follow its list: those that rank most entries first in their kind
    order = [card["index"] for part in listed for card in (*part["boards"], *part["idle"])] or [*range(len(boards))]
    own = _shown([boards[i] for i in order], rows, main, glossary)
    others = [{**details(rows[key], "", glossary), "there": False} for key in sorted(rows.keys() - main.keys())]
    script = environment.get_template("page.js").render()
    return environment.get_template("page.html.j2").render(
        style=Markup(environment.get_template("page.css").render()),  # both are our own and contain nothing from rows
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        tiles=_tiles(boards, rows),
        boards=[
            {
                **cards[i],
                "rows": shown,
                "metrics": _meanings(chain.from_iterable(shown)),
                "strip": _strip(boards[i], rows, beside),
                "ids": _ids(boards[i], rows, ids),
            }
            for i, shown in zip(order, own, strict=True)
        ],
        contents=listed,
        pictures=beside,
        others=others,
        others_metrics=_meanings(others),
        glossary=glossary,
        data=_embedded(export.as_dict(boards)),
        protocol=PROTOCOL,
    )


def _shown(
    boards: Sequence[Board], rows: Mapping[str, Result], main: Mapping[str, str], glossary: Glossary
) -> list[list[list[dict[str, Any]]]]:
    """The rows of each line of each board; a row that several lines use is `there` at all of them but the first."""
    found: dict[str, dict[str, Any]] = {}

    def one(key: str) -> dict[str, Any]:
        there = key in found
        if not there:
            found[key] = details(rows[key], main[key], glossary)
        return {**found[key], "there": there}

    return [[[one(key) for key in line.keys] for line in board.lines] for board in boards]


def _meanings(shown: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(name, meaning) of the metrics of some rows; measures may give two meanings to one name."""
    return sorted({(m["name"], m["help"]) for row in shown for m in row["metrics"] if m["help"]})


def _ids(board: Board, rows: Mapping[str, Result], ids: Ids | None) -> str:
    """The names of the images that entries are compared on, separated by blanks; empty where they are not known."""
    first = next((line for line in board.lines if line.kept), None)
    if ids is None or first is None:
        return ""
    return " ".join(str(int(i)) for i in ids(rows[first.keys[0]].cell))


def _pictures(rows: Mapping[str, Result], pictures: Pictures) -> dict[str, list[dict[str, str]]]:
    """The pictures of rows by their keys, as data URIs; large files are left out, and all once the page is full."""
    found, left = {}, PAGE_BYTES
    for key in sorted(rows):
        files = [(name, file) for name, file in pictures(rows[key].cell, PICTURES) if _is_small_png(file)]
        left -= sum(len(file) for _, file in files)
        if left < 0:
            break
        if files:
            found[key] = [{"name": name, "data": base64.b64encode(file).decode()} for name, file in files]
    return found


def _is_small_png(file: bytes) -> bool:
    return len(file) <= PICTURE_BYTES and file.startswith(b"\x89PNG\r\n\x1a\n")


def _strip(
    board: Board, rows: Mapping[str, Result], beside: Mapping[str, list[dict[str, str]]]
) -> list[dict[str, str]]:
    """Some pictures for plain sight: the first of each row, of different rows first."""
    found = [(line, key) for line in board.lines for key in line.keys if key in beside]
    seen: dict[str, tuple[str, str]] = {}
    for line, key in found:  # one row for each attack
        seen.setdefault(what(rows[key]), (line.title, key))
    each = 1 if len(seen) > STRIP // 2 else 2
    return [
        {"data": picture["data"], "name": picture["name"], "what": told, "entry": title, "href": f"#row-{key[:16]}"}
        for told, (title, key) in list(seen.items())[:STRIP]
        for picture in beside[key][:each]
    ]


def _embedded(value: Any) -> Markup:
    """JSON that cannot close the script element it is embedded in."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for c in "<>&":
        text = text.replace(c, f"\\u{ord(c):04x}")
    return Markup(text)


def _tiles(boards: Sequence[Board], rows: Mapping[str, Result]) -> list[dict[str, Any]]:
    lines = [line for board in boards for line in board.lines]
    planted = [line for line in lines if line.judged]
    missed = sum(bool(line.uncaught) for line in planted)
    aside = sum(line.control for line in lines) - len(planted)
    failed = sum(row.status == "error" for row in rows.values())
    told = "planted controls caught" + (f", {aside} not judged" if aside else "")
    caught = {"value": f"{len(planted) - missed}/{len(planted)}", "text": told}
    return [
        {"value": len(boards), "text": "boards" if len(boards) != 1 else "board"},
        {"value": sum(line.rank is not None for line in lines), "text": "ranked entries"},
        {"value": len(rows), "text": "measured rows"},
        *([{**caught, "tone": "bad" if missed else "good"}] if planted else []),
        *([{"value": failed, "text": "failed rows" if failed > 1 else "failed row", "tone": "bad"}] if failed else []),
    ]
