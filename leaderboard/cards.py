"""A board as the template wants it: heads, cells, chips, remarks and figures."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any

from . import pairs, plots, sentences
from .board import SHORT, Board, Column, Line
from .glossary import Glossary
from .words import interval, shown

FEW = 100  # a board of fewer inputs is a demonstration
_PARTS = re.compile(r": | (?=on |from |in )")  # of a title: the kind of board, and the rest
SIGNS = {"rate": "%"}


def as_card(board: Board, glossary: Glossary) -> dict[str, Any]:
    """Everything of a board except its rows."""
    anchors = {id(line): f"entry-{board.id}-{i}" for i, line in enumerate(board.lines)}
    main, parts = _parts(board)
    order = [*main, *(column for part in parts for column in part["columns"])]
    models = _of_models(board)
    lines = [_line(board, line, i, main, parts, glossary, models) for i, line in enumerate(board.lines)]
    kind, _, name = board.title.partition(": ")
    count = board.facts.get(board.nouns, "")
    return {
        "id": board.id,
        "kind": kind,
        "name": name or board.title,
        "title": board.title,
        "result": board.result.replace(" %", "\u00a0%"),
        "about": board.about,
        "short": board.about.partition(". ")[0].rstrip(".") + ".",
        "facts": board.facts,
        "size": _size(board),
        "few": count.isdecimal() and int(count) < FEW,
        "count": f"{count} {board.nouns}",
        "noun": board.noun,
        "notes": [*_overlaps(board), *board.notes],
        "main": [_column(board, column, -1) for column in main],
        "parts": parts,
        "more": [_column(board, column, i) for i, part in enumerate(parts) for column in part["columns"]],
        "explained": [
            {"title": c.title, "help": c.help, "entry": glossary.summary(c.title) if c.group else ""} for c in order
        ],
        "entry": "Model" if models else board.entry,
        "ranked": [line for line in lines if line["place"]],
        "idle": board.result.startswith(sentences.IDLE),
        "unranked": [line for line in lines if not line["place"]],
        "figures": plots.figures(board, lambda line: f"#{anchors[id(line)]}"),
        "lines": lines,
        "pairs": pairs.neighbours(board.lines),
    }


def contents(cards: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The boards by kind, those that rank most entries first, each with what its title says beyond the kind.

    Those without a ranked entry stand apart. `about` has the first sentences about the boards of a kind, each once.
    """
    found: dict[str, dict[str, Any]] = {}
    for card in cards:
        kind, *rest = _PARTS.split(card["title"], maxsplit=1)
        part = found.setdefault(kind, {"kind": kind, "boards": [], "idle": [], "about": {}})
        part["about"].setdefault(card["short"].replace(card["noun"], ""), card["short"])
        part["idle" if card["idle"] else "boards"].append({**card, "name": "".join(rest) or kind})
    for part in found.values():
        part["boards"].sort(key=lambda card: -len(card["ranked"]))
        part["about"] = " ".join(part["about"].values())
    return list(found.values())


def _size(board: Board) -> str:
    count, entries = board.facts.get(board.nouns, ""), len(board.ranked)
    told = [f"{int(count):,} {board.nouns}"] if count.isdecimal() else []
    told += [f"{board.facts['population']}"] if "population" in board.facts else []
    return ", ".join([*told, f"{entries} ranked {'entry' if entries == 1 else 'entries'}"])


def _parts(board: Board) -> tuple[list[Column], list[dict[str, Any]]]:
    """(columns that are always shown, parts of columns behind a switch each); empty columns are left out."""
    columns = [c for c in board.columns if any(_filled(line, c) for line in board.lines)]
    single = all(line.value("seeds") in (None, 1.0) for line in board.lines)
    columns = [c for c in columns if not (c.id == "seeds" and single)]
    plain = [c for c in columns if not c.group]
    main = [c for c in plain if c.main or c.unit == "points"]  # a difference stands beside its number
    rest = [c for c in plain if c not in main]
    parts: dict[str, list[Column]] = {"More": rest} if rest else {}
    for column in columns:
        if column.group:
            parts.setdefault(column.heading or column.group, []).append(column)
    return main, [{"title": title, "columns": found, "heads": _heads(title, found)} for title, found in parts.items()]


def _heads(title: str, columns: Sequence[Column]) -> list[tuple[str, int]]:
    """What stands above the columns of a part, and above how many: its title, or what their own titles begin with."""
    return [(over or title, len([*run])) for over, run in groupby(columns, key=lambda column: column.over)]


def _filled(line: Line, column: Column) -> bool:
    return bool(line.texts.get(column.id)) if column.unit == "text" else line.value(column.id) is not None


def _overlaps(board: Board) -> list[str]:
    """A remark where intervals overlap and ranks do not: the reason must stand beside the table."""
    for a, b in pairwise(board.ranked):
        low, high = a.number(board.primary).low, b.number(board.primary).high
        if a.rank and b.rank and a.rank[1] < b.rank[0] and low is not None and high is not None and low <= high:
            return [
                f"{a.title} ranks above {b.title} although their intervals overlap: ranks come from a paired test on "
                f"the same {board.nouns} or models, which sees smaller differences than two separate intervals."
            ]
    return []


def _of_models(board: Board) -> bool:
    """Whether its entries differ in their models only: then these are what a reader looks for."""
    models = {line.names.get("model") for line in board.lines}
    return len(models) > 1 and len({line.key[1:] for line in board.lines if next(iter(line.names)) == "model"}) == 1


def _headline(line: Line, models: bool) -> tuple[str, str]:
    """(main name of the entry, in small print its model, or the rest where all entries differ in their models)."""
    names = dict(line.names)
    model = names.pop("model", "")
    if names and models:
        return model, ", ".join(f"{kind}: {name}" for kind, name in names.items())
    return " / ".join(names.values()) or model, model


def _column(board: Board, column: Column, part: int) -> dict[str, Any]:
    primary = column.id == board.primary
    sign = "" if column.title.endswith("%") else SIGNS.get(column.unit, "")  # `0.5%`, an eps in l0
    return {
        "title": column.title.removeprefix(f"{column.over} "), "help": column.help, "unit": sign, "kind": column.unit,
        "primary": primary, "part": part,
    }  # fmt: skip


def _line(
    board: Board, line: Line, position: int, main: Sequence[Column], parts: Sequence[Mapping[str, Any]],
    known: Glossary, models: bool,
) -> dict[str, Any]:  # fmt: skip
    own = f"entry-{board.id}-{position}"
    name, under = _headline(line, models)
    worst = _worst(board, line)
    top = sentences.leaders(board.lines)
    loud = [f for f in line.flags if f.severity != "info"]
    return {
        "anchor": own,
        "place": line.place.replace("-", "–"),
        "top": line in top and (len(top) < len(board.ranked) or len(top) == 1),
        "order": f"{position:04d}" if line.rank else "",
        "name": name,
        "under": under,
        "title": line.title,
        "status": line.status,
        "uncaught": line.uncaught,
        "judged": line.judged,
        "reasons": line.reasons,
        "main": [_cell(board, column, line, own, worst, -1) for column in main],
        "more": [_cell(board, c, line, own, worst, i) for i, part in enumerate(parts) for c in part["columns"]],
        "chips": _chips(loud, own),
        "remarks": len({f.id for f in line.flags if f.severity == "info"}),
        "flag_ids": " ".join(sorted({f.id for f in line.flags})),
        "flags": [
            {"id": f.id, "severity": f.severity, "evidence": f.evidence, "anchor": known.flag(f.id)} for f in line.flags
        ],
        "count": len(line.keys),
    }


def _worst(board: Board, line: Line) -> dict[str, float]:
    """The value of the most harmful attack, by group of columns."""
    found: dict[str, list[float]] = {}
    low = {c.group for c in board.columns if c.better == "low"}
    for column in board.columns:
        value = line.value(column.id)
        if column.group and value is not None:
            found.setdefault(column.group, []).append(value)
    return {group: (max if group in low else min)(values) for group, values in found.items()}


def _cell(board: Board, column: Column, line: Line, own: str, worst: Mapping[str, float], part: int) -> dict[str, Any]:
    primary = column.id == board.primary
    if column.unit == "text":
        text = line.texts.get(column.id, "–")
        return {"text": text, "sort": text, "href": "", "kind": "text", "primary": False, "tint": None, "part": part}
    number = line.number(column.id)
    single = len(number.keys) == 1
    cell: dict[str, Any] = {
        "text": shown(number.value, column.unit),
        "sort": "" if number.value is None else repr(float(number.value)),
        "href": "" if number.value is None else f"#row-{number.keys[0][:SHORT]}" if single else f"#{own}",
        "kind": column.unit,
        "primary": primary,
        "part": part,
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


def _chips(flags: Sequence[Any], own: str) -> list[dict[str, Any]]:
    """One chip per flag id, worst first; it leads to the evidence."""
    counts = Counter(f.id for f in flags)
    first = {f.id: f for f in reversed(flags)}
    return [
        {
            "id": name, "severity": first[name].severity, "evidence": first[name].evidence, "count": counts[name],
            "href": f"#{own}",
        }
        for name in dict.fromkeys(f.id for f in flags)
    ]  # fmt: skip
