"""Computes the SVG coordinates of the page's figures. The template draws them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .board import Board, Column, Line, shown
from .figures import Bars, Curves, Dots, Polar, Scatter

WIDTH, HEIGHT = 680, 380
LEFT, RIGHT, TOP, BOTTOM = 48, 18, 16, 44
LETTER = 6.3  # approximate width of a letter of the labels
SERIES = 8  # number of colours


@dataclass(frozen=True)
class Axis:
    """A linear (or logarithmic) scale from values to pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, v = self.low, self.high, value
        if self.log:
            low, high, v = math.log10(low), math.log10(high), math.log10(v)
        return round(self.start + (self.end - self.start) * (v - low) / (high - low), 1)

    def ticks(self, step: float) -> list[dict[str, Any]]:
        """Positions and labels of round percentages."""
        first = math.ceil(self.low / step - 1e-9)
        values = [step * i for i in range(first, math.floor(self.high / step + 1e-9) + 1)]
        return [{"at": self(v), "text": f"{100 * v:.0f}"} for v in values]


def figure(board: Board, link: Callable[[Line], str]) -> dict[str, Any] | None:
    """The figure of a board, or None if there is nothing to draw.

    Args:
        link: maps a line to the link target of its mark.
    """
    lines = [line for line in board.lines if line.value(board.primary) is not None]
    if not lines:
        return None
    match board.figure:
        case Scatter() as drawn:
            return scatter(drawn, board, lines, link)
        case Curves() as drawn:
            return curves(drawn, board, lines, link)
        case Dots() as drawn:
            return dots(drawn, board, lines, link)
        case Polar() as drawn:
            return polar(drawn, lines, link)
        case Bars() as drawn:
            return bars(drawn, lines, link)


def _title(board: Board, column: str) -> str:
    """Title of a column, in lower case."""
    return next((c.title.lower() for c in board.columns if c.id == column), column)


def _short(name: str, limit: int = 26) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"


def _names(lines: Sequence[Line]) -> dict[int, str]:
    """Labels of the lines, without the model if there is only one."""
    single = len({line.names.get("model") for line in lines}) == 1
    return {id(line): line.names["defense"] if single else line.title for line in lines}


# ------------------------------------------------------------------------------------------------- clean and robust


def scatter(drawn: Scatter, board: Board, lines: Sequence[Line], link: Callable[[Line], str]) -> dict[str, Any] | None:
    """One rate against another, the intervals of the latter, and the Pareto front of the ranked entries."""
    lines = [line for line in lines if line.value(drawn.x) is not None]
    if not lines:
        return None
    across = [line.value(drawn.x) or 0.0 for line in lines]
    tops = [max(line.value(drawn.y) or 0.0, line.number(drawn.y).high or 0.0) for line in lines]
    x = Axis(max(0.0, math.floor(min(across) * 10 - 0.5) / 10), 1.0, LEFT, WIDTH - RIGHT)
    y = Axis(0.0, max(0.2, min(1.0, math.ceil(max(tops) * 10 + 0.2) / 10)), HEIGHT - BOTTOM, TOP)
    models = sorted({line.names["model"] for line in lines})
    titles = [_title(board, column) for column in (drawn.x, drawn.y)]
    points: list[dict[str, Any]] = []
    for line in lines:
        number = line.number(drawn.y)
        value, other = number.value or 0.0, line.value(drawn.x) or 0.0
        points.append(
            {
                "x": x(other),
                "y": y(value),
                "low": y(number.low if number.low is not None else value),
                "high": y(number.high if number.high is not None else value),
                "series": models.index(line.names["model"]) % SERIES,
                "status": "control" if line.control else "ranked" if line.rank else "unranked",
                "name": _short(line.names["defense"]),  # the colour names the model
                "title": f"{line.title}: {titles[1]} {shown(value, 'rate')} %, {titles[0]} {shown(other, 'rate')} %",
                "href": link(line),
            }
        )
    _label(points)
    front: list[dict[str, Any]] = []
    for point in sorted((p for p in points if p["status"] == "ranked"), key=lambda p: (-p["x"], p["y"])):
        if not front or point["y"] < front[-1]["y"]:  # from the right: each higher point belongs to the front
            front.append(point)
    steps = [f"L{p['x']} {before['y']}L{p['x']} {p['y']}" for before, p in itertools.pairwise(front)]
    return {
        "kind": "scatter",
        "label": f"{titles[1]} against {titles[0]}, one point per entry".capitalize(),
        "width": WIDTH,
        "height": HEIGHT,
        "frame": (LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM),
        "x_ticks": x.ticks(0.1 if x.high - x.low > 0.25 else 0.05),
        "y_ticks": y.ticks(0.1 if y.high <= 0.6 else 0.2),
        "x_title": f"{titles[0]}, %",
        "y_title": f"{titles[1]}, %",
        "points": points,
        "front": f"M{front[0]['x']} {front[0]['y']}{''.join(steps)}" if steps else "",
        "legend": [{"name": m, "series": i % SERIES} for i, m in enumerate(models)] if len(models) > 1 else [],
        "shapes": sorted({p["status"] for p in points} - {"ranked"}),
    }


AROUND = ((10, 4, "start"), (-10, 4, "end"), (0, -11, "middle"), (0, 20, "middle"), (10, -9, "start"), (-10, -9, "end"))


def _label(points: list[dict[str, Any]]) -> None:
    """Place the name of each point where it overlaps nothing, ranked points first; omit it if there is no room."""
    taken = [(p["x"] - 6, p["y"] - 6, p["x"] + 6, p["y"] + 6) for p in points]
    for point in sorted(points, key=lambda p: (p["status"] != "ranked", p["status"], p["y"], p["x"])):
        width = LETTER * len(point["name"])
        for dx, dy, anchor in AROUND:
            left = point["x"] + dx - {"start": 0.0, "end": width, "middle": width / 2}[anchor]
            box = (left, point["y"] + dy - 10, left + width, point["y"] + dy + 3)
            inside = box[0] >= LEFT + 2 and box[2] <= WIDTH and box[1] >= 0 and box[3] <= HEIGHT - BOTTOM
            own = points.index(point)
            if inside and not any(_overlap(box, other) for i, other in enumerate(taken) if i != own):
                point.update(text_x=round(point["x"] + dx, 1), text_y=round(point["y"] + dy, 1), anchor=anchor)
                taken.append(box)
                break


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


# ---------------------------------------------------------------------------------------------------------- queries


def curves(drawn: Curves, board: Board, lines: Sequence[Line], link: Callable[[Line], str]) -> dict[str, Any] | None:
    """A rate against a number, one curve per entry; every curve begins at the column `start`."""
    side = 216
    marks = [mark for _, mark in drawn.columns]
    first = marks[0] / 10 if drawn.log else marks[0] - (marks[1] - marks[0] if len(marks) > 1 else 1)
    x = Axis(float(first), float(marks[-1]), LEFT, WIDTH - side, log=drawn.log)
    y = Axis(0.0, 1.0, HEIGHT - BOTTOM, TOP)
    names = _names(lines)
    out: list[dict[str, Any]] = []
    for line in [line for line in lines if not line.control][:SERIES]:
        found = [(k, v) for column, k in drawn.columns if (v := line.value(column)) is not None]
        if not found:
            continue
        origin = line.value(drawn.start[0])
        start = [(first, origin)] if origin is not None else []
        at = [(x(k), y(v)) for k, v in (*start, *found)]
        told = ", ".join(f"{shown(v, 'rate')} % at {k}" for k, v in found)
        out.append(
            {
                "series": len(out),
                "places": at,
                "path": " ".join(f"{a},{b}" for a, b in at),
                "name": _short(names[id(line)]),
                "title": f"{line.title}: {told} {drawn.title}",
                "href": link(line),
                "ranked": line.rank is not None,
                "x": at[-1][0],
                "y": at[-1][1],
            }
        )
    if not out:
        return None
    _spread(out, 14.0, HEIGHT - BOTTOM)
    ticks = [{"at": x(k), "text": f"{k:,}"} for k in marks]
    return {
        "kind": "curves",
        "label": f"{_title(board, board.primary).capitalize()} against {drawn.title}, one curve per entry",
        "width": WIDTH,
        "height": HEIGHT,
        "frame": (LEFT, TOP, WIDTH - side, HEIGHT - BOTTOM),
        "x_ticks": [{"at": x(first), "text": drawn.start[1]}, *ticks],
        "y_ticks": y.ticks(0.2),
        "x_title": drawn.title,
        "y_title": f"{_title(board, board.primary)}, %",
        "lines": out,
        "more": max(0, sum(not line.control for line in lines) - len(out)),
    }


def _spread(items: list[dict[str, Any]], gap: float, bottom: float) -> None:
    """Vertical positions for the labels of the curves, at least `gap` apart."""
    ordered = sorted(items, key=lambda item: (item["y"], item["series"]))
    last = -math.inf
    for item in ordered:
        last = item["text_y"] = max(item["y"], last + gap)
    last = bottom + gap
    for item in reversed(ordered):
        last = item["text_y"] = round(min(item["text_y"], last - gap), 1)


# ------------------------------------------------------------------------------------------------------ all directions

RADIUS = (HEIGHT - TOP - BOTTOM) / 2 - 14  # of the score 1
CENTRE = (WIDTH / 2, TOP + RADIUS + 16)


def _towards(degrees: float, score: float) -> tuple[float, float]:
    """The place of a score; 0 degrees is up, and 90 on the left."""
    angle = math.radians(degrees)
    x, y = CENTRE[0] - RADIUS * score * math.sin(angle), CENTRE[1] - RADIUS * score * math.cos(angle)
    return round(x, 1), round(y, 1)


def polar(drawn: Polar, lines: Sequence[Line], link: Callable[[Line], str]) -> dict[str, Any] | None:
    """A score over all directions, one closed curve per entry, and a dashed one for what it is compared with."""

    def closed(line: Line, before: str) -> list[tuple[float, float]]:
        found = [(k, v) for column, k in drawn.columns if (v := line.value(before + column)) is not None]
        return [_towards(k, v) for k, v in found]

    names = _names(lines)
    out: list[dict[str, Any]] = []
    for line in [line for line in lines if not line.control][:SERIES]:
        at = closed(line, "")
        if len(at) < 3:
            continue
        told = ", ".join(f"{v:.2f} at {k:g}" for c, k in drawn.columns if (v := line.value(c)) is not None)
        out.append(
            {
                "series": len(out),
                "places": at,
                "path": " ".join(f"{a},{b}" for a, b in at),
                "other": " ".join(f"{a},{b}" for a, b in closed(line, drawn.before)),
                "name": _short(names[id(line)]),
                "title": f"{line.title}: {told} degrees",
                "href": link(line),
                "ranked": line.rank is not None,
            }
        )
    if not out:
        return None
    anchors = ("middle", "end", "middle", "start")
    ends = [(*_towards(90 * i, 1.0), text, anchors[i]) for i, text in enumerate(drawn.sides)]
    shift = ((0, -7), (-8, 4), (0, 17), (8, 4))
    return {
        "kind": "polar",
        "label": f"{drawn.title}, one curve per entry; dashed: {drawn.other}",
        "width": WIDTH,
        "height": HEIGHT,
        "centre": CENTRE,
        "rings": [{"r": round(RADIUS * k / 4, 1), "text": f"{k / 4:g}"} for k in range(1, 5)],
        "sides": [
            {"x": x, "y": y, "text_x": x + dx, "text_y": y + dy, "text": text, "anchor": anchor}
            for (x, y, text, anchor), (dx, dy) in zip(ends, shift, strict=True)
        ],
        "lines": out,
        "legend": [{"name": line["name"], "series": line["series"]} for line in out],
        "more": max(0, sum(not line.control for line in lines) - len(out)),
    }


# ------------------------------------------------------------------------------------------------------------- rows

ROW = 34
WIDEST = 190  # largest width of the names beside the rows


def _side(lines: Sequence[Line]) -> int:
    """Width of the names on the left."""
    return min(WIDEST, 14 + round(LETTER * max(len(_short(line.title)) for line in lines)))


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
                "name": _short(line.title),
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
                "name": _short(line.title),
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
        "label": f"{drawn.title} of each entry under each attack, and its mean",
        "width": WIDTH,
        "height": bottom + BOTTOM,
        "frame": (side, TOP, WIDTH - 60, bottom),
        "x_ticks": [{"at": t["at"], "text": f"{int(t['text']) / 100:.1f}"} for t in x.ticks(0.1)],
        "y_ticks": [],
        "x_title": drawn.title,
        "y_title": "",
        "rows": rows,
        "chance": None if drawn.chance is None else x(drawn.chance),
    }


def tint(value: float | None, column: Column) -> int | None:
    """Colour intensity of a cell of a group, 0 to 100."""
    return None if value is None or not column.group else round(100 * min(1.0, max(0.0, value)))
