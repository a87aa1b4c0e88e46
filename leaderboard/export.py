"""Export boards as JSON, CSV, Markdown, and as JSON in the form of lm-evaluation-harness."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from typing import Any

from siegebench.cells import PROTOCOL, SCHEMA

from .board import SHORT, Board, Line, Number, interval, shown


def as_dict(boards: Iterable[Board]) -> dict[str, Any]:
    """All boards as plain data."""
    return {"schema": SCHEMA, "protocol": PROTOCOL, "boards": [_board(board) for board in boards]}


def as_json(boards: Iterable[Board]) -> str:
    """All boards, with the keys of the rows behind each number."""
    return json.dumps(as_dict(boards), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _board(board: Board) -> dict[str, Any]:
    return {
        "id": board.id,
        "track": board.track,
        "title": board.title,
        "about": board.about,
        "facts": board.facts,
        "primary": board.primary,
        "columns": [
            {"id": c.id, "title": c.title, "unit": c.unit, "help": c.help, "better": c.better} for c in board.columns
        ],
        "lines": [_line(line) for line in board.lines],
        "notes": list(board.notes),
        "result": board.result,
    }  # fmt: skip


def _line(line: Line) -> dict[str, Any]:
    return {
        "rank": list(line.rank) if line.rank else None,
        "status": line.status,
        "names": line.names,
        "reasons": list(line.reasons),
        "uncaught": line.uncaught,
        "numbers": {name: _number(number) for name, number in line.numbers.items()},
        "texts": line.texts,
        "flags": [
            {"id": f.id, "severity": f.severity, "evidence": f.evidence, "row": f.key[:SHORT]} for f in line.flags
        ],
        "rows": [key[:SHORT] for key in line.keys],
        **({"kept": line.kept, "images": line.kept_of} if line.kept else {}),
    }  # fmt: skip


def _number(number: Number) -> dict[str, Any]:
    parts = {"value": number.value, "low": number.low, "high": number.high, "n": number.n}
    return {k: v for k, v in parts.items() if v is not None or k == "value"}


# -------------------------------------------------------------------------------------------------------------- csv

HEAD = ("board", "track", "data", "threat", "rank_best", "rank_worst", "status")


def as_csv(boards: Sequence[Board]) -> str:
    """One table for all boards, one line per entry. Columns that a board lacks are empty. Rates are in [0, 1]."""
    boards = list(boards)
    names = _seen(name for b in boards for line in b.lines for name in line.names)
    texts = _seen(c.id for b in boards for c in b.columns if c.unit == "text")
    figures = _seen(c.id for b in boards for c in b.columns if c.unit != "text")
    numbers = [(b, line, c) for b in boards for line in b.lines for c in figures]
    wide = {c for _, line, c in numbers if line.number(c).low is not None}
    heads = [h for c in figures for h in ((c, f"{c}.low", f"{c}.high") if c in wide else (c,))]
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow([*HEAD, *names, *map(_safe, texts), *map(_safe, heads), "flags", "reasons", "rows"])
    for board in boards:
        for line in board.lines:
            best, worst = line.rank or ("", "")
            cells: list[Any] = [_safe(line.names.get(name, "")) for name in names]
            cells += [_safe(line.texts.get(name, "")) for name in texts]
            for column in figures:
                number = line.number(column)
                cells += [number.value, number.low, number.high] if column in wide else [number.value]
            flags = " ".join(sorted({f"{f.severity}:{f.id}" for f in line.flags}))
            where = [board.id, board.track, *(_safe(board.facts.get(fact, "")) for fact in ("data", "threat"))]
            told = [_safe(flags), _safe("; ".join(line.reasons)), " ".join(key[:SHORT] for key in line.keys)]
            table.writerow([*where, best, worst, line.status, *cells, *told])
    return out.getvalue()


def _seen(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _safe(text: str) -> str:
    """Escape text that a spreadsheet would interpret as a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


# ---------------------------------------------------------------------------------------------------------- lm-eval


def as_lm_eval(boards: Iterable[Board]) -> str:
    """One task per line of a board, in the form of the result files of lm-evaluation-harness.

    The standard error of a rate is that of a mean of 0/1 outcomes; other numbers have "N/A", as there.
    """
    out: dict[str, dict[str, Any]] = {
        "results": {}, "configs": {}, "versions": {}, "n-shot": {}, "higher_is_better": {}, "n-samples": {}
    }  # fmt: skip
    for board in boards:
        units = {c.id: c for c in board.columns if c.unit != "text" and not c.group and c.id != "published"}
        for line in board.lines:
            task = f"{board.id}/{line.title}"
            found: dict[str, Any] = {"alias": f"{board.title}: {line.title}"}
            for name, column in units.items():
                number = line.number(name)
                if number.value is not None:
                    found[f"{name},none"] = number.value
                    found[f"{name}_stderr,none"] = _stderr(number, column.unit)
            out["results"][task] = found
            out["configs"][task] = {"task": task, "dataset_path": board.facts.get("data", ""), "metadata": board.facts}
            out["versions"][task], out["n-shot"][task] = PROTOCOL, 0
            out["higher_is_better"][task] = {n: c.better == "high" for n, c in units.items() if c.better}
            n = line.number(board.primary).n
            out["n-samples"][task] = {"original": n, "effective": n}
    whole = {**out, "config": {"model": "siegebench", "model_args": {}, "limit": None}, "model_source": "siegebench"}
    return json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _stderr(number: Number, unit: str) -> float | str:
    if unit != "rate" or number.value is None or number.n is None or number.n < 2 or not 0 <= number.value <= 1:
        return "N/A"  # a difference of rates has another error
    return float(f"{(number.value * (1 - number.value) / (number.n - 1)) ** 0.5:.6g}")


# --------------------------------------------------------------------------------------------------------- markdown


def as_markdown(boards: Iterable[Board]) -> str:
    """One table per board, with rates in per cent."""
    return "\n".join(part for board in boards for part in _section(board))


def _section(board: Board) -> list[str]:
    names = list(board.lines[0].names) if board.lines else []
    heads = ["#", *(n.capitalize() for n in names), *(c.title for c in board.columns), "Flags"]
    facts = ", ".join(f"{k} {v}" for k, v in board.facts.items())
    out = [
        f"## {_md(board.title)}",
        "",
        f"**{_md(board.result)}**",
        "",
        _md(board.about),
        "",
        _md(facts),
        "",
        _row(heads),
    ]
    sides = ["--:", *(":--" for _ in names), *(":--" if c.unit == "text" else "--:" for c in board.columns), ":--"]
    out.append(f"|{'|'.join(sides)}|")
    for line in board.lines:
        cells = []
        for column in board.columns:
            if column.unit == "text":
                cells.append(line.texts.get(column.id, "–"))
            else:
                number = line.number(column.id)
                around = interval(number, column.unit) if column.id == board.primary else ""
                cells.append(shown(number.value, column.unit) + (f" [{around}]" if around else ""))
        flags = ", ".join(sorted({f.id for f in line.flags if f.severity != "info"}))
        out.append(_row([line.place or ("control" if line.control else "–"), *line.names.values(), *cells, flags]))
    out.append("")
    for line in board.unranked:
        out.append(f"- {_md(line.title)}: {_md('; '.join((*line.reasons, *filter(None, [line.verdict]))))}")
    out += [f"- {_md(note)}" for note in board.notes]
    return [*out, ""]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_md(cell) for cell in cells) + " |"


def _md(text: str) -> str:
    """Escape Markdown and HTML."""
    for c in "\\`*_[]<>|#~":
        text = text.replace(c, {"<": "&lt;", ">": "&gt;"}.get(c, f"\\{c}"))
    return " ".join(text.split())
