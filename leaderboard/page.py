"""The page: one self-contained HTML file with optional JavaScript. Every number links to its rows.

Rows may come from untrusted sources. The template escapes all text, links lead only within the page, and the content
security policy allows only the page's own script.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import BaseLoader, Environment, StrictUndefined
from markupsafe import Markup

from siegebench.cells import PROTOCOL, Cell, Result, canonical

from . import export, plots
from .board import SHORT, Board, Column, Line, interval, metric, shown, unique, what, why

PICTURES, PICTURE_BYTES, PAGE_BYTES = 12, 2**18, 2**23  # of a row, of one picture, of all pictures of a page
SHOWN_ENV = ("siegebench", "torch", "python", "device", "commit")  # other fields may identify a person or a machine


class _Bundled(BaseLoader):
    """Loads templates from the folder of this file, in a checkout and in a wheel."""

    def get_source(self, environment: Environment, template: str) -> tuple[str, str, Any]:
        return files(__package__).joinpath(template).read_text(encoding="utf-8"), template, lambda: True


@cache
def _templates() -> Environment:
    # autoescape=True, never select_autoescape: that decides by file extension and would not escape .j2
    return Environment(
        loader=_Bundled(), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


Pictures = Callable[[Cell, int], Sequence[tuple[str, bytes]]]


def render(boards: Sequence[Board], results: Iterable[Result], pictures: Pictures | None = None) -> str:
    """Render the page. The result does not depend on the order of the rows.

    Args:
        boards: from `rank.boards`.
        results: the rows of the boards; all are listed at the bottom of the page.
        pictures: returns the PNG files beside a row, at most so many of them, each with its name.
    """
    rows = {row.cell.key: row for row in unique(results)}
    shown_beside = {} if pictures is None else _pictures(rows, pictures)
    main = {key: board.row_metric for board in boards for line in board.lines for key in line.keys}
    environment = _templates()
    script = environment.get_template("page.js").render()
    return environment.get_template("page.html.j2").render(
        style=Markup(environment.get_template("page.css").render()),  # both are our own and contain nothing from rows
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        tiles=_tiles(boards, rows),
        boards=[_board(board, rows) for board in boards],
        pictures=shown_beside,
        others=[_row(rows[key], "") for key in sorted(rows.keys() - main.keys())],
        data=_embedded(export.as_dict(boards)),
        protocol=PROTOCOL,
    )


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


# ----------------------------------------------------------------------------------------------------------- boards


def _anchor(board: Board, line: Line) -> str:
    return f"entry-{board.id}-{board.lines.index(line)}"


def _board(board: Board, rows: Mapping[str, Result]) -> dict[str, Any]:
    lines = [_line(board, line, i) for i, line in enumerate(board.lines)]
    first = next(iter(board.ranked), None)
    plain, each = _split(board)
    spans = Counter((column.group, column.heading) for column in each)
    return {
        "id": board.id,
        "kind": board.title.partition(": ")[0],
        "name": board.title.partition(": ")[2] or board.title,
        "title": board.title,
        "about": board.about,
        "facts": board.facts,
        "notes": board.notes,
        "plain": [_column(board, column) for column in plain],
        "each": [_column(board, column) for column in each],
        "groups": [{"title": heading, "span": span} for (_, heading), span in spans.items()],
        "entry": board.entry,
        "ranked": [line for line in lines if line["place"]],
        "unranked": [line for line in lines if not line["place"]],
        "figure": plots.figure(board, lambda line: f"#{_anchor(board, line)}"),
        "lines": [
            {**line, "rows": [_row(rows[key], board.row_metric) for key in raw.keys]}
            for line, raw in zip(lines, board.lines, strict=True)
        ],
        "first": None if first is None else {"name": _headline(first)[0], "under": _headline(first)[1]},
        "best": None if first is None else shown(first.value(board.primary), board.unit),
        "unit": "%" if board.unit == "rate" else "",
        "measure": next((c.title for c in board.columns if c.id == board.primary), ""),
    }


def _split(board: Board) -> tuple[list[Column], list[Column]]:
    """(columns of the whole entry, columns of single attacks, which follow the flags)."""
    single = all(line.value("seeds") in (None, 1.0) for line in board.lines)
    plain = [c for c in board.columns if not c.group and not (c.id == "seeds" and single)]
    return plain, [c for c in board.columns if c.group]


def _headline(line: Line) -> tuple[str, str]:
    """(main name of the entry, name of the model in small print)."""
    names = dict(line.names)
    model = names.pop("model", "")
    return " / ".join(names.values()) or model, model


def _column(board: Board, column: Column) -> dict[str, Any]:
    unit = "%" if column.unit == "rate" else ""
    primary = column.id == board.primary
    return {"title": column.title, "help": column.help, "unit": unit, "kind": column.unit, "primary": primary}


def _line(board: Board, line: Line, position: int) -> dict[str, Any]:
    anchor = _anchor(board, line)
    name, under = _headline(line)
    plain, each = _split(board)
    worst = {
        group: (max if low else min)(
            v for c in board.columns if c.group == group and (v := line.value(c.id)) is not None
        )
        for group, low in {(c.group, c.better == "low") for c in board.columns if c.group}
        if any(line.value(c.id) is not None for c in board.columns if c.group == group)
    }
    return {
        "anchor": anchor,
        "place": line.place.replace("-", "–"),
        "top": line.rank is not None and line.rank[0] == 1,
        "order": f"{position:04d}" if line.rank else "",
        "name": name,
        "under": under,
        "title": line.title,
        "status": line.status,
        "uncaught": line.uncaught,
        "judged": line.judged,
        "reasons": line.reasons,
        "plain": [_cell(board, column, line, anchor, worst) for column in plain],
        "each": [_cell(board, column, line, anchor, worst) for column in each],
        "chips": _chips(line, anchor),
        "flags": [
            {"id": f.id, "severity": f.severity, "evidence": f.evidence, "row": f.key[:SHORT]} for f in line.flags
        ],
    }


def _cell(board: Board, column: Column, line: Line, anchor: str, worst: Mapping[str, float]) -> dict[str, Any]:
    primary = column.id == board.primary
    if column.unit == "text":
        text = line.texts.get(column.id, "–")
        return {"text": text, "sort": text, "href": "", "kind": "text", "primary": False, "tint": None}
    number = line.number(column.id)
    single = len(number.keys) == 1
    cell: dict[str, Any] = {
        "text": shown(number.value, column.unit),
        "sort": "" if number.value is None else repr(float(number.value)),
        "href": "" if number.value is None else f"#row-{number.keys[0][:SHORT]}" if single else f"#{anchor}",
        "kind": column.unit,
        "primary": primary,
        "tint": plots.tint(number.value, column),
        "low_is_good": column.better == "low",
        "worst": column.group == "attack" and number.value is not None and number.value == worst.get(column.group),
        "interval": interval(number, column.unit),
        "n": number.n,
    }
    if primary and number.value is not None and column.unit in ("rate", "score"):
        low = number.low if number.low is not None else number.value
        high = number.high if number.high is not None else number.value
        cell["bar"] = [round(100 * min(1.0, max(0.0, v)), 1) for v in (low, number.value, high)]
    return cell


def _chips(line: Line, anchor: str) -> list[dict[str, Any]]:
    """One chip per flag id, worst first."""
    counts = Counter(f.id for f in line.flags)
    chips: dict[str, dict[str, Any]] = {}
    for flag in line.flags:
        chips.setdefault(
            flag.id,
            {
                "id": flag.id,
                "severity": flag.severity,
                "evidence": flag.evidence,
                "count": counts[flag.id],
                "href": f"#row-{flag.key[:SHORT]}" if flag.key else f"#{anchor}",
            },
        )
    return list(chips.values())


# ------------------------------------------------------------------------------------------------------------- rows


def _row(row: Result, main: str) -> dict[str, Any]:
    """All data of a row for its section of the page.

    Args:
        main: the metric shown while the row is collapsed.
    """
    cell, value = row.cell, metric(row, main)
    return {
        "key": cell.key,
        "short": cell.key[:SHORT],
        "what": what(row),
        "adaptive": cell.adaptive,
        "seed": cell.seed,
        "status": row.status,
        "main": None if value is None else {"name": main, "text": f"{value:.4g}"},
        "why": "" if row.status == "ok" else why(row),
        "metrics": [_metric(name, value) for name, value in sorted(row.metrics.items())],
        "counts": [{"name": name, "text": f"{value:,.6g}"} for name, value in sorted(row.counts.items())],
        "flags": row.flags,
        "cell": canonical(cell.as_dict()),
        "env": [(name, str(row.env[name])) for name in SHOWN_ENV if name in row.env],
        "seconds": "" if row.timing.get("seconds") is None else f"{row.timing['seconds']:,.6g}",
        "made": (row.timing.get("ended") or "")[:16].replace("T", " "),
        "errors": row.errors,
        "weights": row.weights[:SHORT],
    }


def _metric(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    value = found.get("value")
    ends = (found.get("low"), found.get("high"))
    return {
        "name": name,
        "text": "–" if value is None else f"{value:.6g}",
        "interval": "" if None in ends else f"{ends[0]:.4g}–{ends[1]:.4g}",
        "n": found.get("n", ""),
    }
