"""Boards of detectors: of single inputs, of training images, and of whole models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from siegebench.leaderboard.board import (
    Board,
    Column,
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
    share,
    slice_facts,
    slice_of,
    slug,
    stored,
    trained_alike,
)
from siegebench.leaderboard.stats import (
    Estimate,
    Vector,
    auroc,
    average_of_rates,
    bootstrap,
    difference_of_means,
    half_width,
    mcnemar,
    mean_interval,
)

from siegebench.cells import Cell, Result, canonical, eps_text

POPULATION = 20  # clean and backdoored models that a model detector must have judged to be ranked

INPUTS = "Scores single inputs at test time, the larger the more suspicious. Ranked by the area under the ROC curve (AUROC), mean over the attacks."
IMAGES = "Scores the images of a poisoned training set. Ranked by the area under the ROC curve (AUROC), mean over the attacks."
MODELS = (
    "Judges whole models at the published threshold. Ranked by balanced accuracy: the mean of the share of backdoored models "
    "found and of clean models left alone. Rank groups by the exact McNemar test over the same models."
)


def boards(rows: Sequence[Result]) -> list[Board]:
    """Input and dataset detection first, then model detection."""
    found = [r for r in rows if r.cell.track == "input_detection" and r.cell.detector is not None]
    judged = [r for r in rows if r.cell.track == "model_detection" and r.cell.detector is not None]
    models = display([trained_alike(r.cell.model) for r in (*found, *judged)])
    # a detector of training images has no second AUROC over unsuccessful triggers
    inputs = {canonical(r.cell.detector) for r in found if metric(r, "auroc_all") is not None}
    scored = {canonical(r.cell.detector) for r in found if metric(r, "auroc") is not None}

    def kind(row: Result) -> str:
        detector = canonical(row.cell.detector)
        return "dataset" if detector in scored - inputs and row.cell.backdoor is not None else "input"

    def model(row: Result) -> str:
        return canonical(trained_alike(row.cell.model))

    by_input = group(found, lambda r: (kind(r), slice_of(r), model(r), canonical(_threat(r.cell))))
    by_model = group(judged, lambda r: (slice_of(r), model(r)))
    made = [_input_board(members, key[0], models[key[2]]) for key, members in by_input.items()]
    return sorted(made, key=lambda b: b.title.startswith("Dataset")) + [
        _model_board(members, models[key[1]]) for key, members in by_model.items()
    ]


def _threat(cell: Cell) -> dict[str, Any] | None:
    return cell.threat if cell.backdoor is None else None


def _line(name: str, rows: list[Result], numbers: dict[str, Number], reasons: list[str]) -> Line:
    control = is_control("detector", rows[0].cell.detector)
    planted = ["control: planted by the suite, shown and never ranked"] if control else []
    return Line(
        names={"detector": name}, numbers=numbers, reasons=(*planted, *problems(rows), *reasons), control=control,
        flags=in_order(marks(rows)), keys=tuple(r.cell.key for r in rows),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------ inputs and images


def _input_board(members: list[Result], kind: str, model: str) -> Board:
    first = members[0].cell
    triggers = first.backdoor is not None
    attacks = display([r.cell.backdoor if triggers else r.cell.attack for r in members])

    def attack_of(row: Result) -> str:
        return attacks[canonical(row.cell.backdoor if triggers else row.cell.attack)]

    def unit(row: Result) -> tuple[str, str]:
        return attack_of(row), canonical([row.cell.model, row.cell.seed])

    failed = {unit(r) for r in members if metric(r, "attack_success") == 0.0}
    asked = {unit(r) for r in members} - failed
    detectors = display([r.cell.detector for r in members])
    estimates: dict[str, dict[Any, Estimate]] = {}
    lines = []
    for key, rows in group(members, lambda r: canonical(r.cell.detector)).items():
        counted = [r for r in rows if unit(r) in asked]
        good = [r for r in counted if r.status == "ok" and metric(r, "auroc") is not None]
        reasons = [] if good else ["nothing was measured"]
        absent = sorted({attack for attack, _ in asked - {unit(r) for r in good}})
        if good and absent:
            reasons.append(f"not measured under {', '.join(absent)}")
        by_attack = group(good, attack_of)
        numbers = _input_numbers(by_attack) if good else {}
        lines.append(_line(detectors[key], rows, numbers, reasons))
        estimates[detectors[key]] = {unit(r): _estimate(r) for r in good}

    def compare(a: Line, b: Line) -> tuple[float, float]:
        return difference_of_means(estimates[a.names["detector"]], estimates[b.names["detector"]])

    placed = place(lines, lambda line: (high_first(line.value("auroc")), high_first(line.value("auroc_min"))), compare)
    data = str(first.data["name"])
    title = f"{'Dataset' if kind == 'dataset' else 'Input'} detection: {model} on {data}"
    facts = {**slice_facts(members[0]), "model": model}
    threat = _threat(first)
    if threat is not None:
        facts["threat"] = f"{threat['norm']} {eps_text(float(threat['eps']))}"
        title += f", {facts['threat']}"
    left_out = sorted({attack for attack, _ in failed})
    return Board(
        id=slug(kind, data, model, key=[kind, slice_of(members[0]), trained_alike(first.model), threat]),
        track="input_detection",
        title=title,
        about=IMAGES if kind == "dataset" else INPUTS,
        facts=facts,
        columns=_input_columns(sorted({attack for attack, _ in asked}), placed),
        primary="auroc",
        lines=placed,
        notes=tuple(f"Left out, the attack itself failed: {attack}." for attack in left_out),
    )


def _estimate(row: Result) -> Estimate:
    found = row.metrics["auroc"]
    return float(found["value"]), half_width(found.get("low"), found.get("high"))


def _input_numbers(by_attack: dict[str, list[Result]]) -> dict[str, Number]:
    every = tuple(r.cell.key for rows in by_attack.values() for r in rows)
    numbers: dict[str, Number] = {}
    for name in ("auroc", "auroc_all", "tpr@1", "tpr@5"):
        found = {a: [v for r in rows if (v := metric(r, name)) is not None] for a, rows in by_attack.items()}
        means = {a: sum(v) / len(v) for a, v in found.items() if v}
        if not means:
            continue
        low, high = (mean_interval(list(means.values())) if name == "auroc" else None) or (None, None)
        numbers[name] = Number(sum(means.values()) / len(means), low, high, len(means), every)
        if name == "auroc":
            worst = min(means, key=lambda a: (means[a], a))
            numbers["auroc_min"] = Number(means[worst], keys=tuple(r.cell.key for r in by_attack[worst]))
            for attack, rows in by_attack.items():
                several = Number(means[attack], n=len(rows), keys=tuple(r.cell.key for r in rows))
                numbers[f"auroc:{attack}"] = stored(rows[0], name) if len(rows) == 1 else several
    numbers["attacks"] = Number(float(len(by_attack)), keys=every)
    return numbers


def _input_columns(attacks: Sequence[str], lines: Sequence[Line]) -> tuple[Column, ...]:
    present = {c for line in lines for c in line.numbers}
    wanted = (
        Column("auroc", "AUROC", "score", "Successful triggered or adversarial inputs against clean ones, mean over attacks; interval by bootstrap over attacks."),
        Column("auroc_min", "Lowest", "score", "AUROC under the attack that hides best."),
        Column("tpr@1", "TPR @1 %", help="Attacks found at 1 % false alarms on clean validation inputs."),
        Column("tpr@5", "TPR @5 %", help="Attacks found at 5 % false alarms on clean validation inputs."),
        Column("auroc_all", "AUROC all", "score", "The same with every triggered input as a positive, successful or not.", main=False),
        *(Column(f"auroc:{a}", a, "score", "AUROC under this attack.", main=False, group="auroc") for a in attacks),
        Column("attacks", "Attacks", "count", "Attacks that the mean runs over.", "", main=False),
    )  # fmt: skip
    return tuple(c for c in wanted if c.id in present)


# ----------------------------------------------------------------------------------------------------- whole models


@dataclass(frozen=True)
class _Judged:
    """One detector over the population, in the population's order."""

    truth: Vector
    flagged: Vector
    score: Vector
    hit: Vector  # -1 where the detector names no target
    right: dict[str, bool]
    rows: list[Result]


def _model_board(members: list[Result], model: str) -> Board:
    def member(row: Result) -> str:
        return canonical([row.cell.model, row.cell.backdoor, row.cell.seed])

    population = {member(r) for r in members}
    detectors = display([r.cell.detector for r in members])
    judged: dict[str, _Judged] = {}
    lines = []
    for key, rows in group(members, lambda r: canonical(r.cell.detector)).items():
        good = [
            r for r in rows if r.status == "ok" and metric(r, "flagged") is not None and metric(r, "truth") is not None
        ]
        values = {
            m: np.array([metric(r, m) if metric(r, m) is not None else np.nan for r in good])
            for m in ("score", "target_hit")
        }
        found = _Judged(
            truth=np.array([metric(r, "truth") == 1 for r in good], dtype=bool),
            flagged=np.array([metric(r, "flagged") == 1 for r in good], dtype=bool),
            score=values["score"],
            hit=np.nan_to_num(values["target_hit"], nan=-1.0),
            right={member(r): metric(r, "flagged") == metric(r, "truth") for r in good},
            rows=good,
        )
        judged[detectors[key]] = found
        clean, bad = int((~found.truth).sum()), int(found.truth.sum())
        reasons = []
        if min(clean, bad) < POPULATION:
            reasons.append(
                f"n/a (population of < {POPULATION}): {clean} clean and {bad} backdoored models, {POPULATION} of each are needed to rank"
            )
        absent = len(population - set(found.right))
        if absent and good and not any(r.status == "error" for r in rows):
            reasons.append(f"{absent} of {len(population)} models not judged")
        lines.append(_line(detectors[key], rows, _model_numbers(found), reasons))

    def compare(a: Line, b: Line) -> tuple[float, float]:
        left, right = judged[a.names["detector"]].right, judged[b.names["detector"]].right
        both = sorted(set(left) & set(right))
        gap = (a.value("balanced_accuracy") or 0.0) - (b.value("balanced_accuracy") or 0.0)
        return gap, mcnemar(
            np.array([left[m] for m in both], dtype=bool), np.array([right[m] for m in both], dtype=bool)
        )

    placed = place(
        lines, lambda line: (high_first(line.value("balanced_accuracy")), high_first(line.value("auroc"))), compare
    )
    first = members[0].cell
    data = str(first.data["name"])
    return Board(
        id=slug("model_detection", data, model, key=[slice_of(members[0]), trained_alike(first.model)]),
        track="model_detection",
        title=f"Model detection: {model} on {data}",
        about=MODELS,
        facts={**slice_facts(members[0]), "model": model, "population": _population(members)},
        columns=_model_columns(placed),
        primary="balanced_accuracy",
        lines=placed,
        notes=("Every false alarm is a clean model that somebody throws away: read that column first.",),
    )


def _population(members: list[Result]) -> str:
    models = {canonical([r.cell.model, r.cell.backdoor, r.cell.seed]): r.cell.backdoor for r in members}
    clean = sum(b is None for b in models.values())
    return f"{clean} clean, {len(models) - clean} backdoored"


def _model_numbers(j: _Judged) -> dict[str, Number]:
    if not j.rows:
        return {}
    keys = np.array([r.cell.key for r in j.rows])
    every = tuple(keys)
    numbers = {
        "false_alarms": share(float((j.flagged & ~j.truth).sum()), int((~j.truth).sum()), tuple(keys[~j.truth])),
        "found": share(float((j.flagged & j.truth).sum()), int(j.truth.sum()), tuple(keys[j.truth])),
        "clean_models": Number(float((~j.truth).sum()), keys=tuple(keys[~j.truth])),
        "backdoored_models": Number(float(j.truth.sum()), keys=tuple(keys[j.truth])),
    }
    alarms, found = numbers["false_alarms"], numbers["found"]
    if alarms.value is not None and found.value is not None:
        assert None not in (alarms.low, alarms.high, found.low, found.high)
        mean, low, high = average_of_rates(
            (found.value, found.low or 0.0, found.high or 0.0),
            (1 - alarms.value, 1 - (alarms.high or 0.0), 1 - (alarms.low or 0.0)),
        )
        numbers["balanced_accuracy"] = Number(mean, low, high, len(every), every)
        if np.isfinite(j.score).all():
            negative, positive = j.score[~j.truth], j.score[j.truth]
            area = Number(auroc(negative, positive), n=len(every), keys=every)
            low_high = bootstrap(negative, positive, statistic=auroc)
            numbers["auroc"] = replace(area, low=low_high[0], high=low_high[1]) if low_high else area
    named = j.truth & j.flagged & (j.hit >= 0)
    if named.any():
        numbers["target_hit"] = share(float((j.hit[named] == 1).sum()), int(named.sum()), tuple(keys[named]))
    return numbers


def _model_columns(lines: Sequence[Line]) -> tuple[Column, ...]:
    present = {c for line in lines for c in line.numbers}
    wanted = (
        Column(
            "balanced_accuracy",
            "Balanced",
            help="Mean of the two shares of models judged rightly, at the published threshold.",
        ),
        Column("auroc", "AUROC", "score", "Of the scores over the population; interval by bootstrap over models."),
        Column(
            "false_alarms", "False alarms", help="Clean models called backdoored; Wilson 95 % interval.", better="low"
        ),
        Column("found", "Found", help="Backdoored models called backdoored; Wilson 95 % interval."),
        Column("target_hit", "Target named", help="Of the backdoored models found: the target class was named."),
        Column("clean_models", "Clean models", "count", "In the population.", "", main=False),
        Column("backdoored_models", "Backdoored models", "count", "In the population.", "", main=False),
    )
    return tuple(c for c in wanted if c.id in present)
