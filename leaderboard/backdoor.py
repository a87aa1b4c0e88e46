"""Boards of the backdoor track: defenses on one dataset and architecture, ranked by mean fidelity over the attacks."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from siegebench import registry
from siegebench.cells import Result, canonical, label

from . import columns, sentences
from .board import (
    Board,
    Column,
    Line,
    Mark,
    Number,
    display,
    group,
    high_first,
    in_order,
    is_control,
    low_first,
    marks,
    metric,
    place,
    problems,
    slice_facts,
    slice_of,
    slug,
    stored,
    trained_alike,
)
from .figures import Bars
from .stats import Estimate, difference_of_means, mean_interval, standard_error

GATE = 0.10  # a defense with a larger mean loss of clean accuracy is listed but not ranked

ABOUT = (
    "All defenses are applied to the same backdoored models. Ranked by fidelity: the fraction of the attack success "
    "rate that the defense removes, times the fraction of clean accuracy that it keeps; negative if the defense makes "
    "the attack stronger. Results are averaged over seeds and poisoning rates within each attack, then over attacks "
    "with equal weight. The intervals are over the attacks; the ranks come from tests on the same models, so that "
    "two entries may differ in rank although their intervals overlap. Ties: lower worst success rate, then higher RIR."
)
MEANS = ("ca", "asr", "ra", "rir", "der", "c_rej", "psr", "b_rej", "dsr")


def boards(rows: Sequence[Result]) -> list[Board]:
    """One board for each slice of the data and architecture."""
    mine = [r for r in rows if r.cell.track == "backdoor" and r.cell.backdoor is not None]
    names = display([trained_alike(r.cell.model) for r in mine])
    grouped = group(mine, lambda r: (slice_of(r), canonical(trained_alike(r.cell.model))))
    return [_board(members, names[model]) for (_, model), members in grouped.items()]


def kind_of(backdoor: Mapping[str, Any] | None) -> dict[str, Any]:
    """The attack without its rate and (all-to-one) target class, which count as repetitions of one attack."""
    given = backdoor or {}
    repeated = ("rate", "target") if isinstance(given.get("target"), int) else ("rate",)
    return {k: v for k, v in given.items() if k not in repeated}


def _poisoning(row: Result) -> str:
    """Identifies one backdoored model: the full attack, the model and the training seed."""
    return canonical([row.cell.backdoor, row.cell.model, row.cell.seed])


def _board(members: list[Result], model: str) -> Board:
    knowing = group([r for r in members if r.cell.adaptive], lambda r: canonical(r.cell.defense))
    plain = [r for r in members if not r.cell.adaptive]
    members, knowing = (plain, knowing) if plain else (members, {})
    names = display([kind_of(r.cell.backdoor) for r in members])
    attack_of = {r.cell.key: names[canonical(kind_of(r.cell.backdoor))] for r in members}
    failed = {_poisoning(r): r for r in members if metric(r, "attack_success") == 0.0}
    expected = {_poisoning(r): attack_of[r.cell.key] for r in members if _poisoning(r) not in failed}
    defenses = display([r.cell.defense for r in members])

    estimates: dict[str, dict[str, Estimate]] = {}
    lines: list[Line] = []
    for key, rows in group(members, lambda r: canonical(r.cell.defense)).items():
        line, estimates[defenses[key]] = _line(defenses[key], rows, attack_of, expected)
        lines.append(under_attack_that_knows(line, knowing.get(key, []), "knowing_asr", worst_of("asr", max)))

    def compare(a: Line, b: Line) -> tuple[float, float]:
        return difference_of_means(estimates[a.names["defense"]], estimates[b.names["defense"]])

    def key_of(line: Line) -> tuple[Any, ...]:
        return (
            high_first(_rounded(line, "fidelity")),
            low_first(_rounded(line, "worst_asr")),
            high_first(_rounded(line, "rir")),
        )

    placed = place(lines, key_of, compare)
    data = str(members[0].cell.data["name"])
    return Board(
        id=slug("backdoor", data, model, key=[slice_of(members[0]), trained_alike(members[0].cell.model)]),
        track="backdoor",
        title=f"Backdoor repair: {model} on {data}",
        about=ABOUT,
        facts={**slice_facts(members[0]), "model": model},
        columns=_columns(sorted(set(expected.values())), placed),
        primary="fidelity",
        row_metric="fidelity",
        figure=Bars(("ca", "clean accuracy"), ("asr", "attack success")),
        lines=placed,
        notes=_notes(members, failed, attack_of),
        result=sentences.repair(placed),
    )


def under_attack_that_knows(
    line: Line, rows: Sequence[Result], column: str, read: Callable[[Sequence[Result]], Number | None]
) -> Line:
    """The line, with a figure under the backdoor attacks that are designed against its entry.

    Args:
        rows: of these attacks.
        read: the figure, from the rows whose attack succeeded; None if they do not have it.
    """
    number = read([r for r in rows if metric(r, "attack_success") == 1.0])
    keys = (*line.keys, *(r.cell.key for r in rows))
    if number is None:
        why = "no backdoor attack that is designed against it was run here"
        if rows:
            why = "the backdoor attacks that are designed against it failed, or were not measured"
        mark = Mark("info", "no_knowing_attack", why)
        return replace(line, flags=in_order([*line.flags, mark]), keys=keys)
    return replace(line, numbers={**line.numbers, column: number}, keys=keys)


def worst_of(name: str, worst: Callable[[Collection[float]], float]) -> Callable[[Sequence[Result]], Number | None]:
    """Reads the largest (`max`) or smallest (`min`) value of a metric from rows."""

    def read(rows: Sequence[Result]) -> Number | None:
        found = {r.cell.key: v for r in rows if (v := metric(r, name)) is not None}
        if not found:
            return None
        value = worst(found.values())
        return Number(value, keys=tuple(key for key, v in found.items() if v == value))

    return read


def _rounded(line: Line, name: str) -> float | None:
    value = line.value(name)
    return None if value is None else round(value, 6)


def _notes(members: list[Result], failed: dict[str, Result], attack_of: dict[str, str]) -> tuple[str, ...]:
    left_out = []
    for (attack, rate), rows in group(failed.values(), lambda r: (attack_of[r.cell.key], _rate(r))).items():
        seeds = ", ".join(str(seed) for seed in sorted({r.cell.seed for r in rows}))
        reached = max((v for r in rows if (v := metric(r, "asr_undefended")) is not None), default=None)
        natural = max((v for r in rows if (v := metric(r, "asr_clean_model")) is not None), default=None)
        asr = "" if reached is None else f", undefended ASR at most {100 * reached:.1f} %"
        asr += "" if natural is None else f", of a clean model {100 * natural:.1f} %"
        left_out.append(f"Excluded, the attack itself failed: {attack}{rate} (seeds {seeds}{asr}).")
    references = registry.with_trait("defense", "reference")  # a useful defense ranks above them
    missing = [name for name in references if name not in {label(r.cell.defense) for r in members}]
    absent = [f"No {' and no '.join(missing)} row: no reference to compare the defenses with."] if missing else []
    return (
        *left_out,
        *absent,
        "Rank groups: z-tests on these models, with the sampling error of the test images, Holm-corrected. "
        f"Defenses that lose more than {100 * GATE:.0f} points of clean accuracy on average are not ranked.",
    )


def _rate(row: Result) -> str:
    rate = (row.cell.backdoor or {}).get("rate")
    return f" at rate {rate:g}" if isinstance(rate, (int, float)) else ""


def _mean(values: Collection[float]) -> float:
    return sum(values) / len(values)


def _line(
    name: str, rows: list[Result], attack_of: Mapping[str, str], expected: Mapping[str, str]
) -> tuple[Line, dict[str, Estimate]]:
    """One defense on all backdoored models of the board.

    Args:
        expected: the backdoored models that count, with the name of the attack on each.
    """
    counted = [r for r in rows if _poisoning(r) in expected]
    good = [r for r in counted if r.status == "ok" and metric(r, "fidelity") is not None]
    by_attack = group(good, lambda r: attack_of[r.cell.key])
    numbers = _numbers(by_attack) if good else {}

    control = is_control("defense", rows[0].cell.defense)
    reasons = ["control: planted by the suite, listed but never ranked"] if control else []
    reasons += problems(counted)
    if not counted:
        reasons.append("no attack on this board was strong enough to judge a defense")
    idle = sorted({attack_of[r.cell.key] for r in counted if r.status == "not_applicable"})
    if good and idle:
        reasons.append(f"not applicable under {', '.join(idle)}")
    unseen = sorted({expected[p] for p in set(expected) - {_poisoning(r) for r in rows}})
    if unseen:
        reasons.append(f"not run on every backdoored model of the board: {', '.join(unseen)}")
    if counted and not good and not reasons:
        reasons.append("no row has a fidelity")
    drop = numbers.get("ca_drop", Number(None)).value
    if drop is not None and drop > GATE:
        reasons.append(f"loses {100 * drop:.1f} points of clean accuracy, more than {100 * GATE:.0f}")
    line = Line(
        names={"defense": name}, numbers=numbers, reasons=tuple(reasons), flags=in_order(marks(counted)),
        control=control, keys=tuple(r.cell.key for r in rows),
    )  # fmt: skip
    return line, {attack: _estimate(found) for attack, found in by_attack.items()}


def _numbers(by_attack: Mapping[str, list[Result]]) -> dict[str, Number]:
    keys = {attack: tuple(r.cell.key for r in rows) for attack, rows in by_attack.items()}
    every = tuple(key for own in keys.values() for key in own)

    def averaged(read: Callable[[Result], float | None]) -> dict[str, float]:
        found = {a: [v for r in rows if (v := read(r)) is not None] for a, rows in by_attack.items()}
        return {a: _mean(values) for a, values in found.items() if values}

    each = {name: averaged(lambda r, name=name: metric(r, name)) for name in ("fidelity", *MEANS)}  # type: ignore[misc]
    numbers = {name: Number(_mean(v.values()), n=len(v), keys=every) for name, v in each.items() if v}
    low, high = mean_interval(list(each["fidelity"].values())) or (None, None)
    numbers["fidelity"] = replace(numbers["fidelity"], low=low, high=high)
    if each["asr"]:
        worst = max(each["asr"], key=lambda attack: (each["asr"][attack], attack))
        numbers["worst_asr"] = Number(each["asr"][worst], keys=keys[worst])
    lost = averaged(_drop)
    if lost:
        numbers["ca_drop"] = Number(_mean(lost.values()), n=len(lost), keys=every)
    for attack, rows in by_attack.items():
        for name, column in (("fidelity", f"fidelity:{attack}"), ("asr", f"asr:{attack}")):
            if attack in each[name]:
                own = (
                    stored(rows[0], name)
                    if len(rows) == 1
                    else Number(each[name][attack], n=len(rows), keys=keys[attack])
                )
                numbers[column] = own
    numbers["attacks"] = Number(float(len(by_attack)), keys=every)
    numbers["seeds"] = Number(float(len({r.cell.seed for rows in by_attack.values() for r in rows})), keys=every)
    return numbers


def _drop(row: Result) -> float | None:
    before, after = metric(row, "ca_undefended"), metric(row, "ca")
    return None if before is None or after is None else before - after


def _estimate(rows: Sequence[Result]) -> Estimate:
    """Mean fidelity of one attack, and its standard error from the sampling of the test images only."""
    values = [metric(r, "fidelity") or 0.0 for r in rows]
    errors = [_error(r) for r in rows]
    known = [e for e in errors if e is not None]
    return _mean(values), (sum(e * e for e in known) ** 0.5 / len(rows) if len(known) == len(rows) else None)


def _error(row: Result) -> float | None:
    """Standard error of (1 - ASR/ASR0) * (CA/CA0) for fixed undefended rates."""
    asr, asr0, ca, ca0 = (metric(row, m) for m in ("asr", "asr_undefended", "ca", "ca_undefended"))
    errors = [
        standard_error(row.metrics.get(m, {}).get("low"), row.metrics.get(m, {}).get("high")) for m in ("asr", "ca")
    ]
    if asr is None or ca is None or not asr0 or not ca0 or errors[0] is None or errors[1] is None:
        return None
    error = math.hypot(ca / ca0 / asr0 * errors[0], (1 - asr / asr0) / ca0 * errors[1])
    return error if math.isfinite(error) else None


def _columns(attacks: Sequence[str], lines: Sequence[Line]) -> tuple[Column, ...]:
    each = [
        *columns.under("fidelity", attacks, "score", "Fidelity under this attack.", heading="Fidelity under"),
        *columns.under("asr", attacks, "rate", "ASR of this attack after the defense.", "low", heading="ASR under"),
    ]
    return columns.filled([*columns.BACKDOOR, *each, *columns.BACKDOOR_MORE], lines)
