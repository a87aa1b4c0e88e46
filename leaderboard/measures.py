"""The numbers of measures, which stand beside those of attacks and never rank."""

from __future__ import annotations

from collections.abc import Sequence

from siegebench import registry
from siegebench.cells import Result, label

from .board import Column, Number, metric
from .glossary import meaning_of_figure


def columns(rows: Sequence[Result]) -> list[Column]:
    """A column for each number of a measure."""
    out = []
    for title in sorted(measured(rows)):
        measure, _, figure = title.rpartition(" ")
        told = meaning_of_figure("measure", measure.partition(" ")[0].partition("(")[0], figure)
        told = f"A diagnostic measure; never ranked. {told}".strip()
        out.append(Column(f"measure:{title}", title, "score", told, "", False, "measure", "Measures", over=measure))
    return out


def measured(rows: Sequence[Result]) -> dict[str, Number]:
    """`flatness likelihood_delta` and the like, means over seeds."""
    found: dict[str, list[Result]] = {}
    for row in rows:
        if (
            row.status == "ok"
            and row.cell.measure is not None
            and "silent" not in registry.traits("measure", row.cell.measure["name"])
        ):
            for name in row.metrics:
                if metric(row, name) is None:
                    continue
                found.setdefault(f"{label(row.cell.measure)} {name}", []).append(row)
    return {
        name: Number(
            sum(metric(r, name.split(" ", 1)[1]) or 0.0 for r in seeds) / len(seeds),
            keys=tuple(r.cell.key for r in seeds),
        )
        for name, seeds in found.items()
    }
