"""What W&B is told of a suite, of a line of a board, and of a row, as plain data under the names that it gets there.

Imports no wandb. The report uses the names of this module only, so that each of its panels finds what was written.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from siegebench.cells import PROTOCOL, SLOTS, Cell, Result, canonical, digest, label
from siegebench.records import Record

from .board import SHORT, Board, Line, metric, what
from .wandb_charts import Chart, further, of_board
from .wandb_tables import Sheet, board_table, flag_table, row_table

PUBLIC_ENV = ("siegebench", "torch", "python", "device", "commit")  # other fields may identify a person or a machine
FLAGS, ROWS = "flags", "rows"  # tables of a whole suite
DONE, FAILED, LEFT = "progress/cells_done", "progress/cells_failed", "progress/seconds_left"
PER_ROW, PER_BOARD, IN_ALL, LARGEST = 4, 48, 300, 2**18  # pictures; bytes of one
PNG = b"\x89PNG\r\n\x1a\n"

Runs = Literal["per_suite", "per_line", "per_cell"]  # one for a suite, for each line of its boards, for each row
Pictures = Callable[[Cell, int], Sequence[tuple[str, bytes]]]  # (name, PNG) of at most so many beside a row


@dataclass(frozen=True)
class Content:
    """One run of W&B.

    Attributes:
        id: of the run, which a second time is updated.
        kind: `job_type` of the run.
        summary: numbers and texts by name.
        progress: the last point of the curves over the progress, by name.
        tables, charts: by name; the table of a chart gets its name and `_table`.
        pictures: (caption, PNG) by name.
        files: of the artifact, by name.
        failed: whether W&B shows the run as failed.
    """

    id: str
    name: str
    group: str
    kind: str
    tags: tuple[str, ...]
    config: dict[str, Any]
    summary: dict[str, Any]
    progress: dict[str, float] = field(default_factory=dict)
    tables: dict[str, Sheet] = field(default_factory=dict)
    charts: dict[str, Chart] = field(default_factory=dict)
    pictures: dict[str, list[tuple[str, bytes]]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    failed: bool = False

    @property
    def names(self) -> set[str]:
        """Every name under which the run has something."""
        drawn = {table_of(name) for name in self.charts}
        return {*self.summary, *self.progress, *self.tables, *drawn, *self.pictures}


# ----------------------------------------------------------------------------------------------------------- the names


def table_name(board: Board) -> str:
    return f"boards/{board.id}"


def chart_name(id: str) -> str:
    """Of a board, or of a further figure of boards."""
    return f"charts/{id}"


def table_of(chart: str) -> str:
    """The name under which W&B keeps the table of a chart."""
    return f"{chart}_table"


def pictures_name(board: Board) -> str:
    return f"pictures/{board.id}"


def primary_names(board: Board) -> dict[tuple[str, ...], str]:
    """The name of the main number of each line, by the key of the line."""
    plain = {line.key: _word(line.title) for line in board.lines}
    words = list(plain.values())
    return {
        key: f"primary/{board.id}/{word if words.count(word) == 1 else f'{word}-{digest(list(key))[:6]}'}"
        for key, word in plain.items()
    }


def _word(text: str) -> str:
    """`resnet18 / none` as `resnet18-none`: dots and slashes have a meaning in names of W&B."""
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "_-") else " " for c in text)
    return "-".join(safe.split())[:80] or "entry"


# ------------------------------------------------------------------------------------------------------- a whole suite


def of_suite(
    record: Record, boards: Sequence[Board], rows: Sequence[Result], page: str = "", pictures: Pictures | None = None
) -> Content:
    """One run for a suite: its boards as tables with charts, its pictures, its rows and its page.

    Args:
        boards, rows: of the suite.
        page: HTML for the artifact.
    """
    tables = {table_name(board): board_table(board) for board in boards}
    tables[FLAGS], tables[ROWS] = flag_table(boards), row_table(boards, rows)
    tables = {name: table for name, table in tables.items() if table.rows}
    charts = {chart_name(b.id): chart for b in boards if (chart := of_board(b)) is not None}
    charts |= {chart_name(id): chart for id, chart in further(boards).items()}
    summary = _suite_summary(boards, rows)
    summary |= {f"left_out/{name}": table.left_out for name, table in tables.items() if table.left_out}
    failed = sum(row.status == "error" for row in rows)
    return Content(
        id=record.id, name=record.title, group=record.suite, kind="suite", tags=_tags(rows),
        config=_suite_config(record, rows), summary=summary, tables=tables, charts=charts,
        progress={DONE: len(rows), FAILED: failed, LEFT: 0.0}, pictures=_pictures(boards, rows, pictures),
        files={"rows.jsonl": _lines(rows), **({"page.html": page.encode()} if page else {})},
        failed=failed > 0,
    )  # fmt: skip


def _suite_config(record: Record, rows: Sequence[Result]) -> dict[str, Any]:
    """The resolved suite: for each track its entries, threats, data and seeds. Rows hold no paths and no hosts."""
    tracks: dict[str, dict[str, Any]] = {}
    for row in rows:
        cell = row.cell.as_dict()
        known = tracks.setdefault(row.cell.track, {})
        for slot in (*SLOTS, "threat", "data", "seed", "severities", "stage", "surrogates", "pool", "copy"):
            if slot in cell:
                known.setdefault(slot, {})[canonical(cell[slot])] = cell[slot]
    resolved = {
        track: {slot: [found[key] for key in sorted(found)] for slot, found in slots.items()}
        for track, slots in sorted(tracks.items())
    }
    return {
        "suite": record.suite, "overrides": record.overrides, "cells": len(record.cells), "protocol": PROTOCOL,
        "tracks": resolved, "env": _environment(rows),
    }  # fmt: skip


def _environment(rows: Iterable[Result]) -> dict[str, Any]:
    """Versions and devices that made the rows; a list where rows differ."""
    found: dict[str, set[str]] = {}
    for row in rows:
        for key in PUBLIC_ENV:
            if row.env.get(key) is not None:
                found.setdefault(key, set()).add(str(row.env[key]))
    return {key: sorted(values) if len(values) > 1 else min(values) for key, values in sorted(found.items())}


def _suite_summary(boards: Sequence[Board], rows: Sequence[Result]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for board in boards:
        names = primary_names(board)
        values = {names[line.key]: line.value(board.primary) for line in board.lines}
        out |= {name: float(value) for name, value in values.items() if value is not None}
    lines = [line for board in boards for line in board.lines]
    flags = [flag for line in lines for flag in line.flags]
    seconds = sum(float(s) for row in rows if (s := row.timing.get("seconds")) is not None)
    return out | {
        "suite/cells": len(rows),
        "suite/cells_failed": sum(row.status == "error" for row in rows),
        "suite/boards": len(boards),
        "suite/ranked_entries": sum(line.rank is not None for line in lines),
        "suite/flags_fail": sum(flag.severity == "fail" for flag in flags),
        "suite/flags_flag": sum(flag.severity == "flag" for flag in flags),
        "suite/controls_uncaught": sum(bool(line.uncaught) for line in lines),
        **({"suite/seconds": seconds} if math.isfinite(seconds) else {}),
    }


def _tags(rows: Iterable[Result]) -> tuple[str, ...]:
    rows = list(rows)
    tags = [*sorted({str(r.cell.data["name"]) for r in rows}), *sorted({r.cell.track for r in rows})]
    return tuple(tag[:64] for tag in tags if tag)


def _pictures(
    boards: Iterable[Board], rows: Iterable[Result], pictures: Pictures | None
) -> dict[str, list[tuple[str, bytes]]]:
    """The first pictures that are stored beside the rows of each board; rows may be untrusted, so only small files."""
    by_key = {row.cell.key: row for row in rows}
    found: dict[str, list[tuple[str, bytes]]] = {}
    left = IN_ALL if pictures is not None else 0
    for board in boards:
        room = min(left, PER_BOARD)
        for line in board.lines:
            for row in (by_key[key] for key in line.keys if key in by_key):
                if room <= 0 or pictures is None:
                    break
                beside = [(n, f) for n, f in pictures(row.cell, PER_ROW) if len(f) <= LARGEST and f.startswith(PNG)]
                shown = [(f"{line.title}: {what(row)}, {name}", file) for name, file in beside[:room]]
                found.setdefault(pictures_name(board), []).extend(shown)
                room, left = room - len(shown), left - len(shown)
    return {name: shown for name, shown in found.items() if shown}


def _lines(rows: Iterable[Result]) -> bytes:
    """The rows as lines of JSON, without what may tell of the machine: hosts, and the traceback of an error."""
    lines = []
    for row in sorted(rows, key=lambda r: r.cell.key):
        whole = row.as_dict()
        whole["env"] = {k: row.env[k] for k in PUBLIC_ENV if k in row.env}
        if row.error:
            whole["error"] = {k: row.error[k] for k in ("type", "message") if k in row.error}
        lines.append(json.dumps(whole, ensure_ascii=False, allow_nan=False, default=float) + "\n")
    return "".join(lines).encode()


# ------------------------------------------------------------------------------------------------- smaller runs


def of_line(record: Record, board: Board, line: Line) -> Content:
    """One run for an entry of a board: its columns as numbers, for panels that compare runs."""
    summary: dict[str, Any] = {"status": line.status, "flags": _ids(f.id for f in line.flags if f.severity != "info")}
    if line.rank is not None:
        summary |= {"rank_best": line.rank[0], "rank_worst": line.rank[1]}
    for column in board.columns:
        if column.unit == "text":
            summary |= {k: v for k, v in ((column.id, line.texts.get(column.id)),) if v is not None}
            continue
        number = line.number(column.id)
        parts = {"": number.value, "/low": number.low, "/high": number.high}
        summary |= {f"{column.id}{part}": float(v) for part, v in parts.items() if v is not None}
    config = {
        **line.names, "suite": record.suite, "overrides": record.overrides, "board": board.id,
        "board_title": board.title, "facts": board.facts, "protocol": PROTOCOL,
    }  # fmt: skip
    return Content(
        id=digest([record.id, board.id, *line.key])[:SHORT], name=line.title, group=board.title, kind="line",
        tags=(record.suite[:64], board.track), config=config, summary=summary,
    )  # fmt: skip


def of_row(row: Result) -> Content:
    """One run for a row: all its numbers, with intervals and counts."""
    cell = row.cell
    last = cell.doing
    parts = [cell.model, cell.defense, cell.backdoor, last]
    name = "/".join(label(part) for part in parts if part is not None)
    labels = cell.labels
    tags = [labels["data"], cell.track, *([labels["threat"]] if "threat" in labels else []), row.status]
    env = {k: row.env[k] for k in PUBLIC_ENV if k in row.env}
    config = {**cell.as_dict(), "key": cell.key, "protocol": PROTOCOL, "weights": row.weights, "env": env}
    return Content(
        id=cell.key[:SHORT], name=name, group=cell.track, kind="cell", tags=tuple(tag[:64] for tag in tags if tag),
        config=config, summary=_row_summary(row), failed=row.status == "error",
    )  # fmt: skip


def _row_summary(row: Result) -> dict[str, Any]:
    out: dict[str, Any] = {"status": row.status, "flags": _ids(f["id"] for f in row.flags)}
    for key, found in row.metrics.items():
        value = metric(row, key)
        if value is not None:
            out[key] = value
            out |= {f"{key}/{part}": found[part] for part in ("low", "high", "n") if found.get(part) is not None}
    return {**out, **row.counts, **{k: v for k, v in row.timing.items() if v is not None}}


def _ids(found: Iterable[str]) -> str:
    return ", ".join(sorted(set(found)))


def contents(
    runs: Runs,
    record: Record,
    boards: Sequence[Board],
    rows: Sequence[Result],
    page: str = "",
    pictures: Pictures | None = None,
) -> list[Content]:
    """The runs of a suite, see `Runs`."""
    if runs == "per_line":
        return [of_line(record, board, line) for board in boards for line in board.lines]
    if runs == "per_cell":
        return [of_row(row) for row in rows]
    return [of_suite(record, boards, rows, page, pictures)]
