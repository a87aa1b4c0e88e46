"""Boards of the privacy track: rules of sharing gradients, ranked by the private images that leaks identify."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import bdtrc

from siegebench import registry
from siegebench.cells import Result, canonical, client_text

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
    share,
    slice_facts,
    slice_of,
    slug,
    stored,
)
from .figures import Bars
from .stats import Vector, average, mcnemar

ABOUT = (
    "Clients release gradients of private images under a rule that the attacker knows. Ranked by the private images "
    "that at least one leak identifies in a gallery of public ones; low is better. A rule whose release points "
    "elsewhere than the gradient is shown and not ranked, and so is every rule on a network whose plain gradients the "
    "leaks cannot invert: there, nothing shows that a rule protects. Entries that do not differ significantly in the "
    "exact McNemar test on the same images share a rank group."
)
LEAKS = 0.8  # share of the images that must be identified from plain gradients
USEFUL = 0.5  # cosine of a useful release with the gradient
UNLIKELY = 1e-3  # probability of as many identified images by chance, at which a control is no control
REFERENCE = "reference"


@dataclass(frozen=True)
class _Rule:
    """The rows of one rule on one network."""

    model: str
    name: str
    plain: bool
    rows: tuple[Result, ...]

    def by_leak(self, control: bool) -> dict[str, list[Result]]:
        mine = [r for r in self.rows if is_control("leak", r.cell.leak) is control and r.status == "ok"]
        return group(mine, lambda r: canonical(r.cell.leak))

    def identified(self, control: bool = False) -> Vector | None:
        """Which images any leak identifies with any seed; None if no leak recovered images of this slice."""
        found = [r.outcome("identified") for rows in self.by_leak(control).values() for r in rows
                 if "identified" in r.samples]  # fmt: skip
        return np.logical_or.reduce(found) if found and len({len(f) for f in found}) == 1 else None


def boards(rows: Sequence[Result]) -> list[Board]:
    """One board per data slice and sort of client."""
    mine = [r for r in rows if r.cell.track == "privacy" and r.cell.leak and r.cell.sharing and r.cell.client]
    grouped = group(mine, lambda r: (slice_of(r), canonical(r.cell.client)))
    return [_board(members) for members in grouped.values()]


def _board(members: list[Result]) -> Board:
    cell = members[0].cell
    client = cell.client or {}
    models, sharings = display(r.cell.model for r in members), display(r.cell.sharing for r in members)
    leaks = display(r.cell.leak for r in members)
    expected = {leak for leak in leaks if not _is_control(leak, members)}
    rules = [
        _Rule(models[m], sharings[s], _is_plain(found[0]), tuple(found))
        for (m, s), found in group(members, lambda r: (canonical(r.cell.model), canonical(r.cell.sharing))).items()
    ]
    plain = {rule.model: rule.identified() for rule in rules if rule.plain}
    lines, outcomes = [], dict[tuple[str, ...], Vector]()
    for rule in rules:
        line = _line(rule, leaks, expected, plain, int(client["gallery"]))
        lines.append(line)
        if (found := rule.identified()) is not None:
            outcomes[line.key] = found

    def compare(a: Line, b: Line) -> tuple[float, float]:
        one, two = outcomes[a.key], outcomes[b.key]
        return float(two.mean() - one.mean()), mcnemar(one, two)

    placed = place(
        lines, lambda line: low_first(line.value("identified")), compare,
        lambda line: high_first(line.value("utility_cos")),
    )  # fmt: skip
    data, names = str(cell.data["name"]), sorted(leaks[leak] for leak in expected)
    told = "Private images that this leak alone identifies, with any seed."
    return Board(
        id=slug("privacy", data, key=[slice_of(members[0]), client]),
        track="privacy",
        title=f"Shared gradients on {data}: {client_text(client)}",
        about=ABOUT,
        facts={**slice_facts(members[0]), "clients": client_text(client), "gallery": str(client["gallery"])},
        columns=columns.filled(
            [*columns.PRIVACY, *columns.under("leak", names, "rate", told, "low", heading="By each leak")], placed
        ),
        primary="identified",
        row_metric="identified",
        figure=Bars(good=("utility_cos", "useful"), bad=("identified", "identified")),
        lines=placed,
        notes=(
            f"By chance {100 / int(client['gallery']):.2g} % of the images are identified. PSNR is a median: recovered "
            "images are often either nearly exact or noise.",
        ),
        result=sentences.privacy(placed),
    )


def _is_control(leak: str, members: list[Result]) -> bool:
    return any(is_control("leak", r.cell.leak) for r in members if canonical(r.cell.leak) == leak)


def _is_plain(row: Result) -> bool:
    return REFERENCE in registry.traits("sharing", str((row.cell.sharing or {}).get("name")))


def _line(
    rule: _Rule, leaks: dict[str, str], expected: set[str], plain: dict[str, Vector | None], gallery: int
) -> Line:
    rows, found = rule.rows, rule.identified()
    control = any(is_control(k, getattr(rows[0].cell, k)) for k in ("model", "sharing"))
    reasons = ["control: planted by the suite, listed but never ranked"] if control else []
    reasons += problems(r for r in rows if r.status != "not_applicable")
    by_leak = rule.by_leak(False)
    tried = {canonical(r.cell.leak) for r in rows}
    if absent := sorted(leaks[leak] for leak in expected - tried):
        reasons.append(f"not attacked by {', '.join(absent)}")
    if found is None:
        reasons = [*(reasons or problems(rows)), "no leak recovered images"]
    own = plain.get(rule.model)
    if own is None and not rule.plain:
        reasons.append("the plain gradients of this network were not attacked")
    elif own is not None and own.mean() < LEAKS:
        told = f"its plain gradients identify {100 * own.mean():.1f} % of the images, less than {100 * LEAKS:g} %"
        reasons.append(f"{told}: the leaks do not work here")
    useful = [r.metrics["utility_cos"]["value"] for r in rows if "utility_cos" in r.metrics]
    if useful and average(useful) < USEFUL:
        reasons.append(f"the release points elsewhere than the gradient (cosine {average(useful):.2f} < {USEFUL:g})")
    flags = marks(rows)
    chance = rule.identified(True)
    if chance is not None and float(bdtrc(int(chance.sum()) - 1, len(chance), 1 / gallery)) < UNLIKELY:
        told = f"the control identifies {int(chance.sum())} of {len(chance)} images without any gradient"
        flags.append(Mark("fail", "control_above_chance", told))
        reasons.append("check failed: control_above_chance")
    numbers, worst = _numbers(rule, by_leak, leaks)
    return Line(
        names={"model": rule.model, "sharing": rule.name}, numbers=numbers,
        texts={"worst_leak": worst} if worst else {},
        reasons=tuple(dict.fromkeys(reasons)), flags=in_order(flags), control=control,
        keys=tuple(r.cell.key for r in rows),
    )  # fmt: skip


def _numbers(rule: _Rule, by_leak: dict[str, list[Result]], leaks: dict[str, str]) -> tuple[dict[str, Number], str]:
    """(numbers, the leak that identifies most)."""
    numbers = {"seeds": Number(float(len({r.cell.seed for r in rule.rows})))}
    keys = tuple(r.cell.key for r in rule.rows)
    for name, control in (("identified", False), ("chance", True)):
        if (found := rule.identified(control)) is not None:
            numbers[name] = share(int(found.sum()), len(found), keys)
    alone: dict[str, float] = {}
    for leak, rows in by_leak.items():
        hits = [r.outcome("identified") for r in rows if "identified" in r.samples]
        if hits and len({len(h) for h in hits}) == 1:
            any_seed = np.logical_or.reduce(hits)
            numbers[f"leak:{leaks[leak]}"] = share(int(any_seed.sum()), len(any_seed), tuple(r.cell.key for r in rows))
            alone[leaks[leak]] = float(any_seed.mean())
    good = [r for rows in by_leak.values() for r in rows]
    for name, best in (("psnr", max), ("ssim", max), ("label_acc", max), ("label_l1", min)):
        given = [r for r in good if r.value(name) is not None]
        if given:
            numbers[name] = stored(best(given, key=lambda r: r.value(name) or 0.0), name)
    for name in ("utility_cos", "epsilon"):
        values = [r.metrics[name]["value"] for r in rule.rows if name in r.metrics]
        if values:
            numbers[name] = Number(average(values), keys=keys)
    return numbers, max(alone, key=lambda leak: (alone[leak], leak)) if alone else ""
