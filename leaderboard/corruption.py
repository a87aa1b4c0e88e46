"""Boards of the corruption track: defended models, ranked by their mean accuracy over corruptions and severities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from siegebench import registry, signatures
from siegebench.cells import Result, canonical

from . import columns, flags, sentences
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
    place,
    problems,
    slice_facts,
    slice_of,
    slug,
    stored,
)
from .figures import Curves
from .stats import Vector, mean_interval, paired_means

ABOUT = (
    "No attacker: images are corrupted by effects of weather, sensors and codecs. Ranked by mean accuracy over "
    "corruptions and severities (a mean, not a worst case); images misclassified without corruption count as errors. "
    "Entries whose means do not differ significantly in a paired test on the same images share a rank group, "
    "ordered by clean accuracy."
)
COMMON, LIGHT = "Common corruptions", "Corruptions of light and contrast"


def boards(rows: Sequence[Result]) -> list[Board]:
    """One board per data slice and list of severities; corruptions of the group `light` have their own boards."""
    mine = [r for r in rows if r.cell.track == "corruption" and r.cell.corruption is not None]
    grouped = group(mine, lambda r: (_light(r), slice_of(r), tuple(r.cell.severities or ())))
    twins = flags.undefended(mine)
    return [_board(members, light, twins) for (light, *_), members in grouped.items()]


def _light(row: Result) -> bool:
    """Whether the corruption belongs to the group `light`; an unregistered corruption does not."""
    name = str((row.cell.corruption or {}).get("name"))
    known = ("corruption", name) in registry.cards()
    return known and signatures.declared("corruption", name).get("group") == "light"


def _finished(row: Result) -> bool:
    return row.status == "ok" and all(f"right@{s}" in row.samples for s in row.cell.severities or ())


def _hits(row: Result) -> Vector:
    """Fraction of the severities at which each image is correctly classified, [N]."""
    outcomes = [row.outcome(f"right@{s}") for s in row.cell.severities or ()]
    return np.asarray(np.mean(outcomes, axis=0))


def _board(members: list[Result], light: bool, twins: flags.Twins) -> Board:
    cell = members[0].cell
    severities = cell.severities or []
    models, defenses = display(r.cell.model for r in members), display(r.cell.defense for r in members)
    names = display(r.cell.corruption for r in members)
    expected = {canonical(r.cell.corruption) for r in members}
    means: dict[tuple[str, ...], Vector] = {}
    lines = []
    for (model, defense), rows in group(
        members, lambda r: (canonical(r.cell.model), canonical(r.cell.defense))
    ).items():
        line, mean = _line({"model": models[model], "defense": defenses[defense]}, rows, names, expected, severities)
        found = in_order([*line.flags, *flags.clean_loss(rows, twins)])
        lines.append(replace(line, flags=found))
        if mean is not None:
            means[line.key] = mean
    # entries measured on different numbers of images cannot be paired
    sizes = [len(mean) for mean in means.values()]
    usual = max(set(sizes), key=sizes.count, default=0)
    lines = [_refused(line, means.get(line.key), usual) for line in lines]

    def compare(a: Line, b: Line) -> tuple[float, float]:
        return paired_means(means[a.key], means[b.key])

    placed = place(
        lines,
        lambda line: high_first(line.value("mean_acc")),
        compare,
        lambda line: high_first(line.value("clean_acc")),
    )
    placed = sentences.gained(placed, "mean_acc")
    data = str(cell.data["name"])
    text = "Accuracy under this corruption, mean over its severities."
    each = columns.under("corruption", sorted(names.values()), "rate", text, heading="Under each corruption")
    return Board(
        id=slug("corruption", data, key=[slice_of(members[0]), severities, light]),
        track="corruption",
        title=f"{LIGHT if light else COMMON}: {len(expected)} of them on {data}",
        about=ABOUT,
        facts={
            **slice_facts(members[0]),
            "corruptions": str(len(expected)),
            "severities": ", ".join(map(str, severities)),
        },
        columns=columns.filled([*columns.CORRUPTION, *each], placed),
        primary="mean_acc",
        row_metric="acc",
        figure=Curves(
            tuple((f"acc@{s}", s) for s in severities), start=("clean_acc", "clean"), title="severity", log=False
        ),
        lines=placed,
        notes=(
            "Severities use the constants published for images of 224 and 32 pixels. Errors are not normalised by "
            "those of another network.",
        ),
        result=sentences.survival(placed, "mean_acc", of=" on average over the corruptions"),
    )


def _line(
    names: dict[str, str], rows: list[Result], corruptions: Mapping[str, str], expected: set[str], severities: list[int]
) -> tuple[Line, Vector | None]:
    """The line of one defended model, and the mean correctness of each image."""
    good = [r for r in rows if _finished(r)]
    control = is_control("defense", rows[0].cell.defense) or is_control("model", rows[0].cell.model)
    reasons = ["control: planted by the suite, listed but never ranked"] if control else []
    reasons += problems(rows)
    absent = sorted(corruptions[c] for c in expected - {canonical(r.cell.corruption) for r in good})
    if absent:
        reasons.append(f"not measured under {', '.join(absent)}")
    by_corruption = group(good, lambda r: corruptions[canonical(r.cell.corruption)])
    lengths = {int(r.samples["n"]) for r in good}
    if len(lengths) > 1:
        reasons.append("its rows have different numbers of images")
    usable = good and len(lengths) == 1
    numbers = _numbers(by_corruption, severities) if usable else {}
    mean: Vector | None = None
    if usable:
        mean = np.mean([np.mean([_hits(r) for r in found], axis=0) for found in by_corruption.values()], axis=0)
        low, high = mean_interval(mean.tolist()) or (None, None)
        keys = tuple(r.cell.key for r in good)
        numbers["mean_acc"] = Number(float(mean.mean()), low, high, len(mean), keys)
        clean = numbers["clean_acc"].value
        if clean:
            numbers["relative_drop"] = Number(max(0.0, 1 - float(mean.mean()) / clean), keys=keys)
    worst = min(by_corruption, key=lambda c: (numbers[f"corruption:{c}"].value, c)) if usable else ""
    if usable:
        numbers["worst_corruption_acc"] = numbers[f"corruption:{worst}"]
    line = Line(
        names=names, numbers=numbers, texts={"worst_corruption": worst} if worst else {}, reasons=tuple(reasons),
        flags=in_order(marks(rows)), control=control, keys=tuple(r.cell.key for r in rows),
    )  # fmt: skip
    return line, mean


def _numbers(by_corruption: Mapping[str, list[Result]], severities: list[int]) -> dict[str, Number]:
    rows = [r for found in by_corruption.values() for r in found]
    every = tuple(r.cell.key for r in rows)
    numbers = {"clean_acc": stored(rows[0], "clean_acc"), "seeds": Number(float(len({r.cell.seed for r in rows})))}
    for name, found in by_corruption.items():
        keys = tuple(r.cell.key for r in found)
        value = float(np.mean([_hits(r).mean() for r in found]))
        numbers[f"corruption:{name}"] = _of_one(found[0]) if len(found) == 1 else Number(value, keys=keys)
    for s in severities:
        means = [np.mean([r.outcome(f"right@{s}").mean() for r in found]) for found in by_corruption.values()]
        numbers[f"acc@{s}"] = Number(float(np.mean(means)), keys=every)
    return numbers


def _of_one(row: Result) -> Number:
    """The mean accuracy of one row, computed from its outcomes if it is not stored."""
    found = stored(row, "acc")
    return Number(float(_hits(row).mean()), keys=found.keys) if found.value is None else found


def _refused(line: Line, mean: Vector | None, usual: int) -> Line:
    """Add a reason not to rank to a line that cannot be paired with the others."""
    if mean is None:
        return line if line.reasons else replace(line, reasons=("no corruption was measured completely",))
    if len(mean) != usual:
        return replace(line, reasons=(*line.reasons, f"measured on {len(mean)} images, other entries on {usual}"))
    return line
