"""Boards of the attack tracks: white box and query. An entry is a defended model, its number the worst case of each image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from siegebench.leaderboard import flags
from siegebench.leaderboard.board import (
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
    marks,
    metric,
    place,
    problems,
    share,
    slice_facts,
    slice_of,
    slug,
    stored,
    what,
    why,
)
from siegebench.leaderboard.stats import Vector, mcnemar

from siegebench.cells import Result, canonical, eps_text, label, rate

REQUIRED = "autoattack"  # of every entry of the white-box track, plain or inside an adaptive wrapper
BUDGETS = (100, 1000, 10000)  # at which the query track reads off robust accuracy

ABOUT = {
    "white_box": "The attacker sees the model and its gradients. Ranked by robust accuracy: an image counts only if the model "
    "gets it right under every attack and seed. Neighbours that the exact McNemar test on the same images cannot tell "
    "apart share a rank group.",
    "query": "The attacker only asks the deployed model and sees its answers. Ranked by robust accuracy after the whole "
    "budget, worst case of each image over the attacks; rank groups by the exact McNemar test.",
}


@dataclass(frozen=True)
class Victim:
    """What is known of one defended model (or of one planted attack on it) on one board."""

    line: Line
    good: tuple[Result, ...]  # finished attacks with an outcome for each of the n images
    survived: Vector | None


def boards(rows: Sequence[Result]) -> list[Board]:
    """One board for each track, slice of the data and threat."""
    attacked = [r for r in rows if r.cell.track in ("white_box", "query")]
    grouped = group(attacked, lambda r: (r.cell.track, slice_of(r), canonical(r.cell.threat)))
    made = [_board(members, attacked) for members in grouped.values()]
    return [board for _, board in sorted(made, key=lambda pair: pair[0])]


def _board(members: list[Result], everything: list[Result]) -> tuple[tuple[Any, ...], Board]:
    first = members[0].cell
    threat = first.threat or {}
    models = display([r.cell.model for r in members])
    defenses = display([r.cell.defense for r in members])
    attacks = display([r.cell.attack for r in members if r.cell.attack is not None])
    planted = [r for r in members if is_control("attack", r.cell.attack)]
    usual = [r for r in members if r.cell.attack is None or not is_control("attack", r.cell.attack)]
    sizes = Counter(int(r.samples["n"]) for r in usual if _finished(r))
    n = max(sizes, key=lambda size: (sizes[size], size)) if sizes else 0
    own = {canonical(r.cell.attack) for r in usual if r.cell.attack is not None and not r.cell.adaptive}

    victims: dict[tuple[str, ...], Victim] = {}
    for rows in group(usual, _victim).values():
        cell = rows[0].cell
        names = {"model": models[canonical(cell.model)], "defense": defenses[canonical(cell.defense)]}
        victim = _victim_line(names, rows, n, attacks, own, everything)
        victims[tuple(names.values())] = victim
    for rows in group(planted, lambda r: (*_victim(r), canonical(r.cell.attack))).values():
        cell = rows[0].cell
        attack = attacks[canonical(cell.attack)]
        under = f"{defenses[canonical(cell.defense)]} under {attack}"
        victims[models[canonical(cell.model)], under] = _planted_line(
            models[canonical(cell.model)], under, rows, attacks
        )

    def compare(a: Line, b: Line) -> tuple[float, float]:
        left, right = (victims[tuple(line.names.values())].survived for line in (a, b))
        assert left is not None
        assert right is not None
        return float(left.mean()) - float(right.mean()), mcnemar(left, right)

    lines = place((v.line for v in victims.values()), lambda line: high_first(line.value("robust_acc")), compare)
    access = str(threat.get("access", ""))
    limit = f", {threat['queries']} queries" if threat.get("queries") else ""
    ball = f"{threat.get('norm')} {eps_text(float(threat.get('eps', 0)))}"
    facts = {**slice_facts(members[0]), "threat": f"{ball}, {access} access{limit}"}
    title = f"{'White box' if first.track == 'white_box' else 'Query'}: {ball} on {first.data['name']}"
    if first.track == "query":
        title += f", {access}s only{limit}" if access == "label" else f", {access}s{limit}"
    board = Board(
        id=slug(first.track, str(first.data["name"]), ball.replace(" ", "-"), key=[slice_of(members[0]), threat]),
        track=first.track,
        title=title,
        about=ABOUT[first.track],
        facts=facts,
        columns=_columns(first.track, [r for r in usual if r.cell.attack is not None], attacks, lines),
        primary="robust_acc",
        lines=lines,
        notes=_notes(first.track),
    )
    return (
        first.track == "query",
        slice_of(members[0]),
        str(threat.get("norm")),
        access,
        float(threat.get("eps", 0)),
        board.id,
    ), board


def _victim(row: Result) -> tuple[str, str]:
    return canonical(row.cell.model), canonical(row.cell.defense)


def _finished(row: Result) -> bool:
    return row.status == "ok" and row.cell.attack is not None and "robust" in row.samples


def _notes(track: str) -> tuple[str, ...]:
    if track == "query":
        return ("A black-box attacker meets the deployed pipeline as it is, so no adaptive attack is required here.",)
    return (
        f"Ranked only with {REQUIRED} on every entry and with an attack that knows the defense on every defended one.",
    )


# ------------------------------------------------------------------------------------------------------------ lines


def _victim_line(
    names: dict[str, str],
    rows: list[Result],
    n: int,
    attacks: dict[str, str],
    own: set[str],
    everything: list[Result],
) -> Victim:
    cell = rows[0].cell
    good = [r for r in rows if _finished(r) and int(r.samples["n"]) == n]
    short = [r for r in rows if _finished(r) and int(r.samples["n"]) != n]
    control = is_control("defense", cell.defense) or is_control("model", cell.model)
    found = [*marks(rows), *flags.wrong_total(good)]
    if cell.track == "white_box":
        related = [r for r in everything if _finished(r) and _same_ball_but(r, rows[0])]
        black = [
            r for r in related if r.cell.track == "query" and (r.cell.threat or {})["eps"] == (cell.threat or {})["eps"]
        ]
        other_eps = [r for r in related if r.cell.track == "white_box"]
        found += flags.one_step_beats_many(good)
        found += flags.black_box_beats_white_box(good, [r for r in black if not is_control("attack", r.cell.attack)])
        found += flags.weak_attack_gap(good)
        by_eps = group(other_eps, lambda r: (r.cell.threat or {})["eps"])
        found += flags.not_monotone(by_eps, (cell.threat or {})["eps"])
    missing = sorted(attacks[a] for a in own - {canonical(r.cell.attack) for r in rows})
    if missing and good:
        found.append(Mark("info", "fewer_attacks", f"others on this board also met {', '.join(missing)}"))
    found += [
        Mark("info", "attack_not_applicable", f"{what(r)}: {why(r)}", r.cell.key)
        for r in rows
        if r.status == "not_applicable" and good
    ]
    ordered = in_order(found)

    reasons = ["control: planted by the suite, shown and never ranked"] if control else []
    reasons += problems(rows)
    reasons += sorted({f"check failed: {f.id}" for f in ordered if f.severity == "fail"} - set(reasons))
    if short:
        reasons.append(f"{what(short[0])} covers {short[0].samples['n']} images, the board has {n}")
    if not good:
        reasons.append("no attack has finished")
    elif cell.track == "white_box":
        if not any(flags.core(r.cell.attack) == REQUIRED for r in good):
            reasons.append(f"required attack missing: {REQUIRED}")
        if label(cell.defense) != "none" and not any(r.cell.adaptive for r in good):
            reasons.append("no adaptive attack: nothing was run that knows this defense")
    caught = flags.uncaught(good, ordered) if control and cell.track == "white_box" else ""
    numbers, texts = _numbers(good, n, attacks) if good else ({}, {})
    line = Line(
        names=names, numbers=numbers, texts=texts, reasons=tuple(reasons), flags=ordered, control=control,
        uncaught=caught, keys=tuple(r.cell.key for r in rows),
    )  # fmt: skip
    return Victim(line, tuple(good), flags.survived(good))


def _planted_line(model: str, under: str, rows: list[Result], attacks: dict[str, str]) -> Victim:
    """An attack that is broken on purpose: it must carry a flag."""
    good = [r for r in rows if _finished(r)]
    found = in_order([*marks(rows), *flags.wrong_total(good)])
    seen = any(f.severity in ("flag", "fail") for f in found)
    numbers, texts = _numbers(good, int(good[0].samples["n"]), attacks) if good else ({}, {})
    line = Line(
        names={"model": model, "defense": under}, numbers=numbers, texts=texts, flags=found, control=True,
        reasons=("control: a planted attack, shown and never counted", *problems(r for r in rows if r.status != "ok")),
        uncaught="" if seen else "no check fired on it", keys=tuple(r.cell.key for r in rows),
    )  # fmt: skip
    return Victim(line, tuple(good), None)


def _same_ball_but(row: Result, like: Result) -> bool:
    """Same victim, slice and norm, whatever the radius and the track."""
    same_norm = (row.cell.threat or {}).get("norm") == (like.cell.threat or {}).get("norm")
    return same_norm and slice_of(row) == slice_of(like) and _victim(row) == _victim(like)


def _numbers(good: Sequence[Result], n: int, attacks: dict[str, str]) -> tuple[dict[str, Number], dict[str, str]]:
    keys = tuple(r.cell.key for r in good)
    worst = flags.survived(good)
    assert worst is not None
    numbers: dict[str, Number] = {}
    by_attack: dict[str, Number] = {}
    for description, rows in group(good, lambda r: canonical(r.cell.attack)).items():
        left = flags.survived(rows)
        assert left is not None
        by_attack[attacks[description]] = share(float(left.sum()), n, tuple(r.cell.key for r in rows))
    strongest = min(by_attack, key=lambda name: (by_attack[name].value, name))
    numbers["robust_acc"] = share(float(worst.sum()), n, keys if len(by_attack) > 1 else by_attack[strongest].keys)
    clean = (
        float(np.mean([r.outcome("clean").mean() for r in good])) if all("clean" in r.samples for r in good) else None
    )
    if clean is not None:
        made = rate(clean * n, n)
        numbers["clean_acc"] = Number(made["value"], made["low"], made["high"], n, keys[:1])
    numbers.update({f"attack:{name}": number for name, number in by_attack.items()})
    for name in (
        "expected_acc",
        "any_hit_acc",
        "median_distance",
        "median_queries",
        *(f"robust_acc@{b}" for b in BUDGETS),
    ):
        found = [stored(r, name) for r in good if metric(r, name) is not None]
        if found:
            numbers[name] = min(found, key=lambda number: (number.value, number.keys))
    passes = [r.counts.get("forwards_per_sample", 0.0) + r.counts.get("backwards_per_sample", 0.0) for r in good]
    if any(passes):
        numbers["passes"] = Number(float(sum(passes)), keys=keys)
    numbers["seeds"] = Number(float(len({r.cell.seed for r in good})), keys=keys)
    return numbers, {"worst_attack": strongest}


def _columns(track: str, rows: list[Result], attacks: dict[str, str], lines: Sequence[Line]) -> tuple[Column, ...]:
    present = {c for line in lines for c in line.numbers}
    adaptive = {attacks[canonical(r.cell.attack)] for r in rows if r.cell.adaptive}
    own = {attacks[canonical(r.cell.attack)] for r in rows}
    wanted = [
        Column("robust_acc", "Robust", help="Worst case of each image over all attacks and seeds; Wilson 95 % interval."),
        Column("clean_acc", "Clean", help="Accuracy on the untouched images."),
        *(
            Column(f"robust_acc@{b}", f"@{b if b < 1000 else f'{b // 1000}k'}", help=f"Robust accuracy after {b} queries an image, under the strongest attack.")
            for b in BUDGETS
        ),
        Column("worst_attack", "Worst attack", "text", "The attack that leaves the lowest accuracy on its own.", ""),
        Column("median_queries", "Median queries", "count", "Queries of a successful attack, fewest over the attacks.", "high"),
        *(
            Column(
                f"attack:{name}", name, help="Robust accuracy under this attack, worst case over seeds."
                + (" It knows the defense." if name in adaptive else ""), main=False, group="attack",
            )
            for name in sorted(own)
        ),
        Column("expected_acc", "Expected", help="Mean accuracy over the draws of a randomised defense, lowest over attacks.", main=False),
        Column("any_hit_acc", "Any-hit", help="Images that no draw of a randomised defense got wrong, lowest over attacks.", main=False),
        Column("median_distance", "Median distance", "score", "Median size of the smallest perturbation found.", main=False),
        Column("passes", "Passes", "count", "Forward and backward passes an attacked image, all attacks together.", ""),
        Column("seeds", "Seeds", "count", "Seeds of the attacks.", "", main=False),
    ]  # fmt: skip
    return tuple(c for c in wanted if c.id in present or c.kind == "text")
