"""Boards that compare detectors over kinds of inputs: adversarial, corrupted, of other data, ambiguous."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata

from siegebench.cells import Result, canonical

from . import columns, sentences
from .board import (
    Board,
    Line,
    Number,
    display,
    group,
    high_first,
    is_control,
    metric,
    place,
    problems,
    slice_facts,
    slice_of,
    slug,
    stored,
    trained_alike,
)
from .detection import ADVERSARIAL, estimate, sort_of
from .figures import Dots
from .flags import has
from .stats import Estimate, difference_of_means

ABOUT = (
    "AUROC of detectors on each kind of inputs, mean over the inputs of a kind. Ranked by the mean over the kinds. A "
    "detector that leads on one kind may be the last on another: read the lowest value too."
)


def boards(rows: Sequence[Result]) -> list[Board]:
    """One board for each slice and model on which detectors met several kinds of inputs; its rows are on others too."""
    found = [
        r for r in rows
        if r.cell.track == "input_detection" and r.cell.detector is not None and r.cell.backdoor is None
    ]  # fmt: skip
    models = display(trained_alike(r.cell.model) for r in found)
    by_model = group(found, lambda r: (slice_of(r), canonical(trained_alike(r.cell.model))))
    return [
        _board(members, models[key[1]]) for key, members in by_model.items() if len({kind_of(r) for r in members}) > 1
    ]


def kind_of(row: Result) -> str:
    """The kind of inputs; adversarial images of attacks that know the detector are a kind of their own."""
    sort = sort_of(row)
    return f"{sort}, known detector" if sort == ADVERSARIAL and has(row.cell.attack, "detector_aware") else sort


def _board(members: list[Result], model: str) -> Board:
    detectors = display(r.cell.detector for r in members)
    kinds = sorted({kind_of(r) for r in members if metric(r, "auroc") is not None})
    numbers: dict[str, dict[str, Number]] = {}
    estimates: dict[str, dict[str, Estimate]] = {}
    for key, rows in group(members, lambda r: canonical(r.cell.detector)).items():
        good = [r for r in rows if r.status == "ok" and metric(r, "auroc") is not None]
        numbers[key] = {f"kind:{kind}": _mean(found) for kind, found in group(good, kind_of).items()}
        estimates[detectors[key]] = {kind: _estimate(found) for kind, found in group(good, kind_of).items()}
    for kind in kinds:  # ranks among the detectors that met the kind
        met = [key for key in numbers if f"kind:{kind}" in numbers[key]]
        ranks = rankdata([-(numbers[key][f"kind:{kind}"].value or 0.0) for key in met])
        for key, rank in zip(met, ranks, strict=True):
            numbers[key][f"rank:{kind}"] = Number(float(rank))
    lines = [_line(key, detectors[key], numbers[key], kinds, members) for key in numbers]

    def compare(a: Line, b: Line) -> tuple[float, float]:
        return difference_of_means(estimates[a.names["detector"]], estimates[b.names["detector"]])

    placed = place(lines, lambda line: (high_first(line.value("auroc")), high_first(line.value("auroc_min"))), compare)
    data = str(members[0].cell.data["name"])
    each = columns.under("kind", kinds, "score", "AUROC on this kind of inputs.", heading="AUROC on")
    return Board(
        id=slug("kinds", data, model, key=["kinds", slice_of(members[0]), trained_alike(members[0].cell.model)]),
        track="input_detection",
        title=f"Detectors by kind of input: {model} on {data}",
        about=ABOUT,
        facts={**slice_facts(members[0]), "model": model},
        columns=columns.filled([*columns.SUPERVISORS, *each], placed),
        primary="auroc",
        row_metric="auroc",
        figure=Dots("kind", mean="auroc", title="AUROC", chance=0.5),
        lines=placed,
        result=sentences.detection(placed, "auroc"),
    )


def _mean(rows: Sequence[Result]) -> Number:
    if len(rows) == 1:
        return stored(rows[0], "auroc")
    values = [float(r.metrics["auroc"]["value"]) for r in rows]
    return Number(float(np.mean(values)), n=len(rows), keys=tuple(r.cell.key for r in rows))


def _estimate(rows: Sequence[Result]) -> Estimate:
    """The mean AUROC on a kind, as ranked, with its standard error if all are known."""
    each = [estimate(r) for r in rows]
    errors = [error for _, error in each if error is not None]
    mean = float(np.mean([value for value, _ in each]))
    return mean, float(np.linalg.norm(errors)) / len(each) if len(errors) == len(each) else None


def _line(key: str, name: str, numbers: dict[str, Number], kinds: Sequence[str], members: Sequence[Result]) -> Line:
    """The line of one detector; its rows are counted on the boards of their kind, so it has no keys."""
    found = [numbers[f"kind:{kind}"] for kind in kinds if f"kind:{kind}" in numbers]
    absent = [kind for kind in kinds if f"kind:{kind}" not in numbers]
    description = next(r.cell.detector for r in members if canonical(r.cell.detector) == key)
    control = is_control("detector", description)
    shown = {column: number for column, number in numbers.items() if column.startswith("kind:")}
    if found:
        values = [number.value or 0.0 for number in found]
        keys = tuple(k for number in found for k in number.keys)
        shown["auroc"] = Number(float(np.mean(values)), n=len(values), keys=keys)
        shown["auroc_min"] = min(found, key=lambda number: (number.value or 0.0, number.keys))
        ranks = [numbers[f"rank:{kind}"].value or 0.0 for kind in kinds if f"rank:{kind}" in numbers]
        shown["mean_rank"] = Number(float(np.mean(ranks)), n=len(ranks), keys=keys)
    reasons = ["control: planted by the suite, listed but never ranked"] if control else []
    reasons += problems(r for r in members if canonical(r.cell.detector) == key)
    reasons += [f"not measured on {', '.join(absent)}"] if absent else [] if found else ["nothing was measured"]
    return Line(names={"detector": name}, numbers=shown, reasons=tuple(reasons), control=control)
