"""Boards of the extraction track: victims by how far thieves get, and thefts by what the answers are worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from siegebench import registry
from siegebench.cells import Result, ball_text, canonical, label

from . import columns, sentences
from .board import (
    Board,
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
    place,
    problems,
    slice_facts,
    slice_of,
    slug,
    stored,
)
from .copies import Copies, Thieves, budget_of, control_of, copies_of, declared, exceeds, has, thieves_of
from .figures import Curves, Scatter
from .stats import ALPHA, Vector, average, mean_interval, paired_means

LITTLE = 0.02  # agreement above the control below which the answers are worth little
NONE = "none"
CONTROL = "control: planted by the suite, listed but never ranked"
OF_COPY = ("copy_acc", "agreement_wrong", "transfer_robust_acc", "tv", "classes_answered")
OF_VICTIM = ("clean_acc", "flips", "answer_l1")  # the same in all rows of a victim
OF_VICTIMS = (
    "A thief asks the victim about images and trains a copy on the answers. Ranked by agreement: how often the copy of "
    "the strongest theft gives the victim's answer to held-out real images, with the largest budget; low is better. "
    "Entries whose agreements do not differ significantly in a paired test on the same images share a rank group, "
    "ordered by clean accuracy. A defense that changes more than 1 % of the decisions is not ranked. A theft counts "
    "only if it exceeds its control significantly on some victim with the same network, and for at least the agreement "
    "of its control; where no theft exceeds its control, the answers are worth nothing and no victim is ranked."
)
OF_THEFTS = (
    "Copies of undefended victims, with the largest budget. Ranked by what the answers are worth: agreement with the "
    "victim minus that of the best control with the same images and without the answers to them. A theft that does not "
    "exceed its control significantly, in a paired test on the same images, is not ranked."
)


def boards(rows: Sequence[Result]) -> list[Board]:
    """Two boards for each slice of the data, pool, copy, access, attack and ball: of victims, and of thefts."""
    mine = [r for r in rows if r.cell.track == "extraction" and r.cell.theft is not None and r.cell.threat is not None]
    out = []
    for members in group(mine, _where).values():
        pools = {canonical(r.cell.pool) for r in members if r.cell.pool is not None}
        for pool in sorted(pools) or [canonical(None)]:  # thefts without a pool stand beside those with any
            found = [r for r in members if r.cell.pool is None or canonical(r.cell.pool) == pool]
            out.append(_victims(found))
            bare = [r for r in found if label(r.cell.defense) == NONE]
            out += [_thefts(bare)] if bare else []
    return out


def _where(row: Result) -> tuple[Any, ...]:
    threat = row.cell.threat or {}
    ball = [threat["norm"], threat["eps"], threat["access"]]
    return slice_of(row), canonical(row.cell.copy), canonical(row.cell.attack), canonical(ball)


def _lacking(row: Result, thefts: Sequence[Copies]) -> list[str]:
    """Why a victim is not ranked: required thefts that were not run on it."""
    labels_only = (row.cell.threat or {}).get("access") == "label"
    tried = {str(theft.description["name"]) for theft in thefts}
    out = []
    for name in registry.with_trait("theft", "required"):
        reads_labels = registry.find("theft", name)[1].get("labels") is True
        if name not in tried and (reads_labels or not labels_only):
            out.append(name)
    lacking = [f"not attacked by {', '.join(out)}"] if out else []
    random = declared("defense", row.cell.defense).get("randomized") is True
    if random and not any(has(theft.description, "averaging") for theft in thefts):
        known = " or ".join(registry.with_trait("theft", "averaging"))
        lacking.append(f"random, and not attacked by a theft that averages, such as {known}")
    return lacking


# --------------------------------------------------------------------------------------------------------- the victims


def _victims(members: list[Result]) -> Board:
    first, names = members[0], display(r.cell.theft for r in members)
    models, defenses = display(r.cell.model for r in members), display(r.cell.defense for r in members)
    budgets = sorted({budget_of(r) for r in members})
    lines, agree = [], {}
    for model, of_model in group(members, lambda r: canonical(r.cell.model)).items():
        victims = group(of_model, lambda r: canonical(r.cell.defense))
        thieves = thieves_of([copies_of(rows, budgets[-1], names) for rows in victims.values()])
        for defense, rows in victims.items():
            line, worst = _victim({"model": models[model], "defense": defenses[defense]}, rows, names, budgets, thieves)
            lines.append(line)
            if worst is not None:
                agree[line.key] = worst

    def compare(a: Line, b: Line) -> tuple[float, float]:
        gap, p = paired_means(agree[a.key], agree[b.key])
        return -gap, p

    placed = place(
        lines, lambda line: low_first(line.value("agreement")), compare,
        lambda line: high_first(line.value("clean_acc")),
    )  # fmt: skip
    each = columns.under(
        "theft", sorted(set(names.values())), "rate", "Agreement under this theft or control.", "low",
        heading="Agreement with each copy",
    )  # fmt: skip
    at = [columns.agreement(budget, main=budget != budgets[-1]) for budget in budgets]
    return Board(
        **_common("victims", members),
        title=f"Theft of models on {first.cell.data['name']}: victims",
        about=OF_VICTIMS,
        columns=columns.filled([*columns.EXTRACTION, *at, *each], placed),
        primary="agreement",
        figure=Curves(
            tuple((f"agreement@{budget}", budget) for budget in budgets), start=("no_answers", "0"), title="queries"
        ),
        lines=placed,
        result=sentences.copying(placed, "agreement"),
    )


def _common(what: str, members: Sequence[Result]) -> dict[str, Any]:
    """What both boards of the same rows say of themselves."""
    first = members[0]
    cell, threat = first.cell, first.cell.threat or {}
    pool = next((r.cell.pool for r in members if r.cell.pool is not None), None)
    asked = "none" if pool is None else f"{pool['count']} images of the {pool['split']} split of {pool['name']}"
    return {
        "id": slug("extraction", what, str(cell.data["name"]), key=[_where(first), canonical(pool)]),
        "track": "extraction",
        "facts": {
            **slice_facts(first), "pool": asked, "answers": f"{threat['access']}s",
            "copy": "the victim's network" if cell.copy is None else label(cell.copy),
            "queries": ", ".join(map(str, sorted({budget_of(r) for r in members}))),
            "transfer": f"{label(cell.attack)}, {ball_text(threat)}",
        },
        "row_metric": "agreement",
    }  # fmt: skip


def _victim(
    names: dict[str, str], rows: list[Result], shown: Mapping[str, str], budgets: Sequence[int], thieves: Thieves
) -> tuple[Line, Vector | None]:
    """The line of a victim, and how often each image agrees with the best copy that a thief can have."""
    every = [copies_of(rows, budget, shown) for budget in budgets]
    thefts = [found for found in every[-1].values() if not found.control]
    control = is_control("model", rows[0].cell.model) or is_control("defense", rows[0].cell.defense)
    reasons = ([CONTROL] if control else []) + problems(rows) + _lacking(rows[0], thefts)
    line = Line(
        names=names, flags=in_order(marks(rows)), control=control, reasons=tuple(reasons),
        keys=tuple(r.cell.key for r in rows),
    )  # fmt: skip
    if not thefts:
        return replace(line, reasons=line.reasons or ("no theft was measured completely",)), None
    if thieves.reason:
        line = replace(line, reasons=(*line.reasons, thieves.reason))
    counted = [found for found in thefts if found.name not in thieves.idle] or thefts
    # a thief who gains nothing by asking keeps the copy of its control
    unaided = [found for theft in counted if (found := control_of(theft.rows[0], every[-1])[0]) is not None]
    strongest = max((*unaided, *counted), key=lambda found: (found.agree.mean(), found.name))
    numbers = {"agreement": strongest.number("agreement"), "copy_acc": strongest.number("copy_acc")}
    numbers |= {name: stored(strongest.rows[0], name) for name in OF_VICTIM}
    transfers = [n for found in thefts if (n := found.number("transfer_robust_acc")).value is not None]
    if transfers:
        numbers["transfer_robust_acc"] = min(transfers, key=lambda n: n.value or 0.0)
    numbers |= {f"theft:{found.name}": found.number("agreement") for found in every[-1].values()}
    for budget, found_at in zip(budgets, every, strict=True):
        tried = [found.number("agreement") for found in found_at.values() if not found.control]
        if tried:
            numbers[f"agreement@{budget}"] = max(tried, key=lambda n: n.value or 0.0)
    unasked = [found.number("agreement") for found in every[-1].values() if found.control and _trained(found)]
    if unasked:
        numbers["no_answers"] = max(unasked, key=lambda n: n.value or 0.0)
    numbers["seeds"] = Number(float(len({r.cell.seed for r in rows})))
    found_flags = in_order([*line.flags, *_labels_suffice(rows[0], thefts)])
    return replace(line, numbers=numbers, texts={"strongest": strongest.name}, flags=found_flags), strongest.agree


def _trained(control: Copies) -> bool:
    """Whether a control is a trained network that never asked."""
    said = declared("theft", control.description)
    return said.get("needs") == "none" and said.get("trains") is not False


def _labels_suffice(row: Result, thefts: Sequence[Copies]) -> list[Mark]:
    """Flag a defense under which labels give a better copy than scores."""
    by_labels = [t for t in thefts if t.description.get("labels") is True]
    by_scores = [t for t in thefts if t.description.get("labels") is not True]
    if label(row.cell.defense) == NONE or not by_labels or not by_scores:
        return []
    a, b = (max(found, key=lambda t: (t.agree.mean(), t.name)) for found in (by_labels, by_scores))
    gap, p = paired_means(a.agree, b.agree)
    if gap <= 0 or p > ALPHA:
        return []
    told = f"{a.name} agrees on {100 * a.agree.mean():.1f} % of the images, {b.name} on {100 * b.agree.mean():.1f} %"
    return [Mark("flag", "label_beats_scores", f"{told}: the defense only spoils scores")]


# ---------------------------------------------------------------------------------------------------------- the thefts


def _thefts(members: list[Result]) -> Board:
    first, names = members[0], display(r.cell.theft for r in members)
    models, budgets = display(r.cell.model for r in members), sorted({budget_of(r) for r in members})
    lines, lifts = [], {}
    for model, rows in group(members, lambda r: canonical(r.cell.model)).items():
        at = [copies_of(rows, budget, names) for budget in budgets]
        for name, of in group(rows, lambda r: names[canonical(r.cell.theft)]).items():
            found = [copies.get(name) for copies in at]
            line, lift = _theft({"model": models[model], "theft": name}, of, found, *control_of(of[0], at[-1]))
            lines.append(line)
            if lift is not None:
                lifts[line.key] = lift

    def compare(a: Line, b: Line) -> tuple[float, float]:
        return paired_means(lifts[a.key], lifts[b.key])

    placed = place(
        lines, lambda line: high_first(line.value("agreement_lift")), compare,
        lambda line: high_first(line.value("copy_acc")),
    )  # fmt: skip
    return Board(
        **_common("thefts", members),
        title=f"Theft of models on {first.cell.data['name']}: thefts",
        about=OF_THEFTS,
        columns=columns.filled(
            [*columns.THEFTS, *(columns.agreement(b, main=b != budgets[-1]) for b in budgets)], placed
        ),
        primary="agreement_lift",
        figure=Scatter("copy_acc", "agreement"),
        lines=placed,
        result=sentences.loot(placed, "agreement_lift"),
    )


def _theft(
    names: dict[str, str], rows: list[Result], at: Sequence[Copies | None], reference: Copies | None, lacking: str
) -> tuple[Line, Vector | None]:
    """The line of a theft on one victim, and how much more often than its control each image agrees.

    Args:
        at: its finished rows for each budget, the largest last.
        reference: the control that it is compared with.
        lacking: why that does not suffice.
    """
    control, copies = is_control("theft", rows[0].cell.theft), at[-1]
    reasons = ([CONTROL] if control else []) + problems(rows)
    found = marks(rows)
    line = Line(names=names, control=control, keys=tuple(r.cell.key for r in rows))
    if copies is None:
        why = reasons or ["not measured with the largest budget"]
        return replace(line, reasons=tuple(why), flags=in_order(found)), None
    budgets = [budget_of(c.rows[0]) for c in at if c is not None]
    numbers = {"agreement": copies.number("agreement"), **{name: copies.number(name) for name in OF_COPY}}
    numbers |= {f"agreement@{b}": c.number("agreement") for b, c in zip(budgets, filter(None, at), strict=True)}
    numbers["queries"] = Number(average([row.counts.get("queries", 0.0) for row in copies.rows]))
    numbers["seeds"] = Number(float(len(copies.rows)))
    numbers = {name: number for name, number in numbers.items() if number.value is not None}
    lift: Vector | None = None
    if reference is not None:
        lift = copies.agree - reference.agree
        gain = float(lift.mean())
        low, high = mean_interval(lift.tolist()) or (None, None)
        numbers["agreement_lift"] = Number(
            gain, low, high, len(lift), (*line.keys, *(r.cell.key for r in reference.rows))
        )
        numbers["control"] = reference.number("agreement")
        told = f"agrees on {100 * copies.agree.mean():.1f} %, {reference.name} on {100 * reference.agree.mean():.1f} %"
        if not control and not exceeds(copies, reference):
            reasons.append(f"not better than its control: {told}")
        if not control and gain < LITTLE:
            found.append(Mark("flag", "no_lift", told))
    if lacking and not control:
        reasons.append(lacking)
    return replace(line, numbers=numbers, reasons=tuple(reasons), flags=in_order(found)), lift
