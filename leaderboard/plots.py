"""Computes the SVG coordinates of the page's figures. The template draws them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

from .axes import BOTTOM, HEIGHT, LEFT, LETTER, RIGHT, TOP, WIDTH, Axis, short
from .board import Board, Column, Line, shown
from .figures import Bars, Curves, Dots, Figure, Polar, Scatter
from .plot_rows import bars, dots

SERIES = 8  # number of colours
POINTS = 150  # most points of a figure


def figures(board: Board, link: Callable[[Line], str]) -> list[dict[str, Any]]:
    """The figures of a board; those with nothing to draw are left out.

    Args:
        link: maps a line to the link target of its mark.
    """
    lines = [line for line in board.lines if line.value(board.primary) is not None]
    drawn = [figure(one, board, lines, link) for one in (board.figure, *board.also)] if lines else []
    return [found for found in drawn if found is not None]


def figure(wanted: Figure, board: Board, lines: Sequence[Line], link: Callable[[Line], str]) -> dict[str, Any] | None:
    """One figure, or None if there is nothing to draw."""
    match wanted:
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


def _names(lines: Sequence[Line]) -> dict[int, str]:
    """Labels of the lines, without the model if there is only one."""
    single = len({line.names.get("model") for line in lines}) == 1
    return {id(line): _entry(line) if single else line.title for line in lines}


def _entry(line: Line) -> str:
    """The names of a line without the model."""
    return " / ".join(name for kind, name in line.names.items() if kind != "model")


# ------------------------------------------------------------------------------------------------- clean and robust


def scatter(drawn: Scatter, board: Board, lines: Sequence[Line], link: Callable[[Line], str]) -> dict[str, Any] | None:
    """One rate against another, the intervals of the latter, and the Pareto front of the ranked entries."""
    lines = [line for line in lines if line.value(drawn.x) is not None]
    if not lines:
        return None
    more, lines = max(0, len(lines) - POINTS), lines[:POINTS]
    across = [line.value(drawn.x) or 0.0 for line in lines]
    tops = [max(line.value(drawn.y) or 0.0, line.number(drawn.y).high or 0.0) for line in lines]
    x = Axis(max(0.0, math.floor(min(across) * 10 - 0.5) / 10), 1.0, LEFT, WIDTH - RIGHT)
    y = Axis(0.0, max(0.2, min(1.0, math.ceil(max(tops) * 10 + 0.2) / 10)), HEIGHT - BOTTOM, TOP)
    models = sorted({line.names["model"] for line in lines})
    alone = len(models) > 1 and len({_entry(line) for line in lines}) == 1  # they differ in their models only
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
                "name": short(line.names["model"] if alone else _entry(line)),  # the colour names the model
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
        "more": more,
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


CURVES = 24  # most curves of a figure
GAP = 14.0  # between the labels of curves


def curves(drawn: Curves, board: Board, lines: Sequence[Line], link: Callable[[Line], str]) -> dict[str, Any] | None:
    """A rate against a number, one curve per entry; every curve begins at the column `start`."""
    side = 216
    shown_lines = [
        line for line in lines if not line.control and any(line.value(c) is not None for c, _ in drawn.columns)
    ]
    if not shown_lines:
        return None
    places = [k for _, k in drawn.columns]
    step = places[1] - places[0] if len(places) > 1 else 1.0
    origin = places[0] / 10 if drawn.log else places[0] - step if drawn.origin is None else drawn.origin
    height = max(HEIGHT, TOP + BOTTOM + round(GAP * min(CURVES, len(shown_lines))))
    x = Axis(float(origin), float(places[-1]), LEFT, WIDTH - side, log=drawn.log)
    y = Axis(0.0, 1.0, height - BOTTOM, TOP)
    names = _names(shown_lines)
    out: list[dict[str, Any]] = []
    for line in shown_lines[:CURVES]:
        found = [(k, v) for column, k in drawn.columns if (v := line.value(column)) is not None]
        first = line.value(drawn.start[0])
        at = [(x(k), y(v)) for k, v in (*([(origin, first)] if first is not None else []), *found)]
        told = ", ".join(f"{shown(v, 'rate')} % at {k:,g}" for k, v in found)
        out.append(
            {
                "series": len(out) % SERIES,
                "dash": len(out) // SERIES,
                "places": at,
                "path": " ".join(f"{a},{b}" for a, b in at),
                "name": f"{short(names[id(line)])} {shown(found[-1][1], 'rate')}",
                "title": f"{line.title}: {told} {drawn.title}",
                "href": link(line),
                "ranked": line.rank is not None,
                "x": at[-1][0],
                "y": at[-1][1],
            }
        )
    _spread(out, GAP, height - BOTTOM)
    ticks = [{"at": x(k), "text": f"{k:,g}"} for k in places]
    return {
        "kind": "curves",
        "label": f"{_title(board, board.primary).capitalize()} against {drawn.title}, one curve per entry",
        "width": WIDTH,
        "height": height,
        "frame": (LEFT, TOP, WIDTH - side, height - BOTTOM),
        "x_ticks": [{"at": x(origin), "text": drawn.start[1]}, *ticks],
        "y_ticks": y.ticks(0.2),
        "x_title": drawn.title,
        "y_title": f"{_title(board, board.primary)}, %",
        "lines": out,
        "more": len(shown_lines) - len(out),
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
                "name": short(names[id(line)]),
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


def tint(value: float | None, column: Column) -> int | None:
    """Colour intensity of a cell of a group, 0 to 100."""
    return None if value is None or not column.group else round(100 * min(1.0, max(0.0, value)))
