"""Figures with a row for each entry: two bars, or a dot for each attack."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from .axes import BOTTOM, LETTER, TOP, WIDTH, Axis, short
from .board import Board, Line
from .figures import Bars, Dots
from .words import shown

ROW = 34
WIDEST = 190  # largest width of the names beside the rows


def _side(lines: Sequence[Line]) -> int:
    """Width of the names on the left."""
    return min(WIDEST, 14 + round(LETTER * max(len(short(line.title)) for line in lines)))


def bars(drawn: Bars, lines: Sequence[Line], link: Callable[[Line], str]) -> dict[str, Any]:
    """Two bars per entry: one where longer is better, one where shorter is better."""
    pair = ((*drawn.good, "good"), (*drawn.bad, "bad"))
    side = _side(lines)
    x = Axis(0.0, 1.0, side, WIDTH - 60)
    rows = []
    for i, line in enumerate(lines):
        found = [(column, kind, line.value(column)) for column, _, kind in pair]
        told = ", ".join(f"{text} {shown(line.value(column), 'rate')} %" for column, text, _ in pair)
        rows.append(
            {
                "y": TOP + ROW * i,
                "name": short(line.title),
                "href": link(line),
                "title": f"{line.title}: {told}",
                "ranked": line.rank is not None,
                "bars": [
                    {"width": max(1.0, round(x(v) - side, 1)), "kind": kind, "text": shown(v, "rate"), "dy": 4 + 12 * j}
                    for j, (_, kind, v) in enumerate(found)
                    if v is not None
                ],
            }
        )
    bottom = TOP + ROW * len(rows)
    return {
        "kind": "bars",
        "label": " and ".join(text for _, text, _ in pair).capitalize() + ", two bars per entry",
        "width": WIDTH,
        "height": bottom + BOTTOM,
        "frame": (side, TOP, WIDTH - 60, bottom),
        "x_ticks": x.ticks(0.2),
        "y_ticks": [],
        "x_title": "%",
        "y_title": "",
        "rows": rows,
        "pair": [{"text": text, "kind": kind} for _, text, kind in pair],
    }


def dots(drawn: Dots, board: Board, lines: Sequence[Line], link: Callable[[Line], str]) -> dict[str, Any]:
    """The value of each entry under each attack, and the mean."""
    each = [c for c in board.columns if c.group == drawn.group]
    values = [v for line in lines for c in each if (v := line.value(c.id)) is not None]
    side = _side(lines)
    x = Axis(max(0.0, min(0.4, math.floor(min(values, default=0.4) * 10) / 10)), 1.0, side, WIDTH - 60)
    rows = []
    for i, line in enumerate(lines):
        found = sorted((v, c.title) for c in each if (v := line.value(c.id)) is not None)
        mean = line.value(drawn.mean) or 0.0
        rows.append(
            {
                "y": TOP + ROW * i,
                "name": short(line.title),
                "href": link(line),
                "title": f"{line.title}: mean {drawn.title} {mean:.3f}",
                "ranked": line.rank is not None,
                "dots": [{"x": x(v), "title": f"{name}: {v:.3f}"} for v, name in found],
                "mean": x(mean),
                "text": f"{mean:.3f}",
            }
        )
    bottom = TOP + ROW * len(rows)
    return {
        "kind": "dots",
        "label": f"{drawn.title} of each entry{' under each attack, and its mean' if each else ''}",
        "width": WIDTH,
        "height": bottom + BOTTOM,
        "frame": (side, TOP, WIDTH - 60, bottom),
        "x_ticks": [{"at": t["at"], "text": f"{int(t['text']) / 100:.1f}"} for t in x.ticks(0.1)],
        "y_ticks": [],
        "x_title": drawn.title,
        "y_title": "",
        "rows": rows,
        "chance": None if drawn.chance is None else x(drawn.chance),
        "several": bool(each),
    }
