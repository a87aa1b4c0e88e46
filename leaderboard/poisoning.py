"""Boards of the poisoning track: defenses on one dataset and architecture, ranked by their mean clean accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from siegebench.cells import Result, canonical

from . import columns, sentences
from .board import (
    Board,
    Line,
    Number,
    display,
    group,
    high_first,
    in_order,
    is_control,
    marks,
    metric,
    place,
    problems,
    slice_facts,
    slice_of,
    slug,
    trained_alike,
)
from .figures import Bars
from .stats import Vector, mean_interval, paired_means

ABOUT = (
    "The training set is poisoned to lower the clean accuracy; there is no trigger. All defenses get the same poisoned "
    "sets. Ranked by clean accuracy on untouched test images, averaged over seeds and rates within each poison, then "
    "over poisons with equal weight. Recovery compares with the same defense on clean data. Entries whose means do not "
    "differ significantly in a paired test on the same images share a rank group, ordered by the worst accuracy."
)
MEANS = (
    "recovery", "ca_undefended", "ca_clean_model", "ca_defense_clean", "ca_not_poisoned", "train_acc", "memorised",
    "corrected",
)  # fmt: skip


def boards(rows: Sequence[Result]) -> list[Board]:
    """One board for each slice of the data and architecture."""
    mine = [r for r in rows if r.cell.track == "poisoning" and r.cell.backdoor is not None]
    names = display([trained_alike(r.cell.model) for r in mine])
    grouped = group(mine, lambda r: (slice_of(r), canonical(trained_alike(r.cell.model))))
    return [_board(members, names[model]) for (_, model), members in grouped.items()]


def kind_of(poison: Mapping[str, Any] | None) -> dict[str, Any]:
    """The poison without its rate: rates count as repetitions of one poison."""
    return {k: v for k, v in (poison or {}).items() if k != "rate"}


def _set(row: Result) -> str:
    """Identifies one poisoned training set and the network trained on it."""
    return canonical([row.cell.backdoor, row.cell.model, row.cell.seed])


def _board(members: list[Result], model: str) -> Board:
    names = display([kind_of(r.cell.backdoor) for r in members])
    poison_of = {r.cell.key: names[canonical(kind_of(r.cell.backdoor))] for r in members}
    expected = {_set(r): poison_of[r.cell.key] for r in members}
    defenses = display([r.cell.defense for r in members])
    means: dict[tuple[str, ...], Vector] = {}
    lines = []
    for key, rows in group(members, lambda r: canonical(r.cell.defense)).items():
        line, mean = _line(defenses[key], rows, poison_of, expected)
        lines.append(line)
        if mean is not None:
            means[line.key] = mean

    def compare(a: Line, b: Line) -> tuple[float, float]:
        return paired_means(means[a.key], means[b.key])

    placed = place(
        lines, lambda line: high_first(line.value("ca")), compare, lambda line: high_first(line.value("worst_ca"))
    )
    data = str(members[0].cell.data["name"])
    text = "Clean accuracy after training on the set with this poison."
    each = columns.under("ca", sorted(set(expected.values())), "rate", text, heading="Accuracy under")
    return Board(
        id=slug("poisoning", data, model, key=[slice_of(members[0]), trained_alike(members[0].cell.model)]),
        track="poisoning",
        title=f"Poisoned training sets: {model} on {data}",
        about=ABOUT,
        facts={**slice_facts(members[0]), "model": model},
        columns=columns.filled([*columns.POISONING, *each, *columns.POISONING_MORE], placed),
        primary="ca",
        row_metric="ca",
        figure=Bars(("ca_clean_model", "clean data"), ("ca", "poisoned data")),
        lines=placed,
        notes=("A poison whose accuracy equals that of training on the rest alone only protects its own images.",),
        result=sentences.recovery(placed),
    )


def _line(
    name: str, rows: list[Result], poison_of: Mapping[str, str], expected: Mapping[str, str]
) -> tuple[Line, Vector | None]:
    """One defense on all poisoned sets of the board, and the mean correctness of each image."""
    good = [r for r in rows if r.status == "ok" and "clean" in r.samples]
    control = is_control("defense", rows[0].cell.defense)
    reasons = ["control: planted by the suite, listed but never ranked"] if control else []
    reasons += problems(rows)
    unseen = sorted({expected[p] for p in set(expected) - {_set(r) for r in good}})
    if unseen:
        reasons.append(f"not measured on every poisoned set of the board: {', '.join(unseen)}")
    if len({int(r.samples["n"]) for r in good}) > 1:
        reasons.append("its rows have different numbers of images")
        good = []
    by_poison = group(good, lambda r: poison_of[r.cell.key])
    mean: Vector | None = None
    numbers: dict[str, Number] = {}
    if good:
        each = {p: np.mean([r.outcome("clean") for r in found], axis=0) for p, found in by_poison.items()}
        mean = np.asarray(np.mean(list(each.values()), axis=0))
        numbers = _numbers(by_poison)
        numbers |= {
            f"ca:{p}": replace(numbers["ca"], value=float(v.mean()), low=None, high=None) for p, v in each.items()
        }
        low, high = mean_interval(mean.tolist()) or (None, None)
        numbers["ca"] = replace(numbers["ca"], value=float(mean.mean()), low=low, high=high, n=len(mean))
        numbers["worst_ca"] = replace(
            numbers["ca"], value=min(float(v.mean()) for v in each.values()), low=None, high=None
        )
    elif not reasons:
        reasons.append("no poison was measured completely")
    line = Line(
        names={"defense": name}, numbers=numbers, reasons=tuple(reasons), flags=in_order(marks(rows)),
        control=control, keys=tuple(r.cell.key for r in rows),
    )  # fmt: skip
    return line, mean


def _numbers(by_poison: Mapping[str, list[Result]]) -> dict[str, Number]:
    """Means over the poisons, each first averaged over its seeds and rates."""
    rows = [r for found in by_poison.values() for r in found]
    keys = tuple(r.cell.key for r in rows)
    numbers = {"ca": Number(0.0, keys=keys)}
    for name in MEANS:
        each = [[v for r in found if (v := metric(r, name)) is not None] for found in by_poison.values()]
        means = [sum(values) / len(values) for values in each if values]
        if means:
            numbers[name] = Number(sum(means) / len(means), n=len(means), keys=keys)
    numbers["attacks"] = Number(float(len(by_poison)), keys=keys)
    numbers["seeds"] = Number(float(len({r.cell.seed for r in rows})), keys=keys)
    return numbers
