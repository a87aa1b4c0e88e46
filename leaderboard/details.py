"""All that a page says about one row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from siegebench.cells import SLOTS, Result, canonical, label
from siegebench.metrics import find
from siegebench.origin import again, by_hand

from .board import SHORT, metric, what, why
from .glossary import Glossary, meaning_of_figure
from .nouns import of_row, said
from .submitted import STATUSES
from .words import Unit, between, shown

SHOWN_ENV = ("device", "cores", "threads", "siegebench", "torch", "python", "commit")  # others may identify a person
MEAN = "_per_sample"  # how the names of counts end that are means over the samples


def details(row: Result, main: str, glossary: Glossary) -> dict[str, Any]:
    """The data of a row for its section of the page.

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
        "main": None if value is None else f"{_title(main)} {_text(value, unit_of(main))}{_sign(main)}",
        "why": "" if row.status == "ok" else why(row),
        "metrics": [_metric(row, name, value) for name, value in sorted(row.metrics.items())],
        "counts": _counts(row.counts),
        "flags": [
            {**f, "evidence": said(str(f["evidence"]), of_row(row)), "anchor": glossary.flag(str(f["id"]))}
            for f in row.flags
        ],
        "parts": [
            {"kind": slot, "name": label(description), "anchor": glossary.anchor(slot, description)}
            for slot in SLOTS
            if (description := getattr(cell, slot)) is not None
        ],
        "cell": canonical(cell.as_dict()),
        "facts": [(k, v) for k, v in _facts(row) if v],
        "command": again(row) or "",
        "by_hand": by_hand(row),
        "made": _when(row),
        "errors": row.errors,
    }


def _when(row: Result) -> str:
    return str(row.timing.get("ended") or "")[:16].replace("T", " ")


def _facts(row: Result) -> list[tuple[str, str]]:
    """When, how long and on what machine."""
    origin = row.given.get("suite") or {}
    sets = "".join(f" --set {assignment}" for assignment in origin.get("set", ()))
    seconds, training = (row.timing.get(name) for name in ("seconds", "training"))
    return [
        ("status", next((STATUSES[f["id"]] for f in row.flags if f["id"] in STATUSES), "")),
        ("seed", str(row.cell.seed)),
        ("finished (UTC)", _when(row)),
        ("seconds", "" if seconds is None else f"{seconds:,.6g}"),
        ("of them training", f"{training:,.6g}" if training else ""),
        ("made with", ", ".join(f"{name} {row.env[name]}" for name in SHOWN_ENV if row.env.get(name) is not None)),
        ("weights", row.weights[:SHORT]),
        ("suite", f"{origin['name']}{sets}" if origin.get("name") else ""),
    ]


def _counts(counts: Mapping[str, float]) -> list[tuple[str, str]]:
    """Passes and queries, each with its mean over the samples behind it."""
    means = {name: name.removesuffix(MEAN) for name in counts if name.removesuffix(MEAN) in counts.keys() - {name}}
    told = {means[name]: f" ({counts[name]:,.6g} per sample)" for name in means}
    return [
        (name.replace("_", " "), f"{value:,.6g}{told.get(name, '')}")
        for name, value in sorted(counts.items())
        if name not in means
    ]


def unit_of(name: str) -> Unit:
    """The unit of a row metric, as in the tables."""
    found = find(name)
    return "rate" if found and found.unit == "rate" else "count" if found and found.unit == "count" else "score"


def _text(value: float, unit: Unit) -> str:
    """As in the tables; scores with four digits, since those of measures may be small."""
    return f"{value:.4g}" if unit == "score" else shown(value, unit)


def _title(name: str) -> str:
    found = find(name)
    return found.title if found else name


def _sign(name: str) -> str:
    return " %" if unit_of(name) == "rate" else ""


def _metric(row: Result, name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    value, unit = found.get("value"), unit_of(name)
    ends = (found.get("low"), found.get("high"))
    known = find(name)
    own = [(slot, given) for slot in ("measure", "study") if (given := getattr(row.cell, slot)) is not None]
    told = [meaning_of_figure(slot, str(given.get("name")), name) for slot, given in own]
    return {
        "name": name,
        "help": said(next((meaning for meaning in told if meaning), known.help if known else ""), of_row(row)),
        "text": "–" if value is None else _text(value, unit) + _sign(name),
        "interval": between(*(_text(end, unit) for end in ends if end is not None)) if None not in ends else "",
        "n": f"{found['n']:,.6g}" if isinstance(found.get("n"), (int, float)) else "",
    }
