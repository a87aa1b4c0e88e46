"""Boards of the tracks that attack images: defended models, ranked by the worst case over the attacks per image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from siegebench import registry
from siegebench.cells import Result, ball_text, canonical, label, pack

from . import columns, flags, measures, over, sentences, subgroups
from .board import (
    Board,
    Column,
    Line,
    Mark,
    Number,
    data_kind,
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
    share,
    slice_facts,
    slice_of,
    slug,
    stored,
    what,
    why,
)
from .figures import Scatter
from .stats import Vector, mcnemar
from .words import change

READ = ("expected_acc", "any_hit_acc", "median_distance", "ssim", "median_queries")  # shown: lowest over the attacks

SAME = (
    "Entries that do not differ significantly in the exact McNemar test on the same images share a rank group, ordered "
    "by clean accuracy."
)
ABOUT = {
    "white_box": "The attacker knows the model and its gradients. Ranked by robust accuracy: an image counts only if "
    f"it stays correctly classified under every attack and seed. {SAME}",
    "query": "The attacker can only query the deployed model. Ranked by robust accuracy at the full query budget, "
    f"with the worst case over the attacks for each image. {SAME}",
    "transfer": "The attacker optimises the images on other networks, without access to the model. Ranked by robust "
    f"accuracy, with the worst case over the attacks for each image. {SAME}",
    "patch": "The attacker knows the model and makes changes visible to a camera: a patch, a pattern, the light. l0 is "
    "the fraction of pixels that differ. Positions, poses and phases are drawn for each image and seed. Ranked by "
    f"robust accuracy, with the worst case over the attacks for each image. {SAME}",
}
TRACKS = tuple(ABOUT)
TARGETED = (
    "Targeted attacks. Ranked by the rate of images classified as their target class, with the worst case over the "
    f"attacks for each image. Images of that class and misclassified clean images are not attacked. {SAME}"
)
HEADING = "Under each attack"
NOTES = {
    "white_box": "An entry is ranked only if {required} was run and, if it has a defense, an adaptive attack too.",
    "query": "A black-box attacker queries the deployed pipeline as it is: no adaptive attack is required here. "
    "The curves end at the ranked number; before, they show what is left under the strongest single attack.",
    "transfer": "The attacks have no access to the defense and are not adaptive. Passes are those of the surrogates.",
    "patch": "Passes are those on the attacked images; the cost of optimising a universal pattern is in its row.",
}


@dataclass(frozen=True)
class Rows:
    """The rows of one defended model on one board, and its rows on other boards."""

    every: tuple[Result, ...]
    good: tuple[Result, ...]  # finished attacks with an outcome for every image of the board
    short: tuple[Result, ...]  # finished attacks on another number of images
    elsewhere: tuple[Result, ...]  # finished attacks under the same norm: other tracks, radii, accesses
    bare: tuple[Result, ...]  # the same of the model without its defense


def boards(rows: Sequence[Result]) -> list[Board]:
    """One board for each track, slice of the data and threat."""
    attacked = [r for r in rows if r.cell.track in TRACKS]
    done = [r for r in attacked if _finished(r)]
    related = {**group(done, _ball), **group([r for r in done if label(r.cell.defense) == "none"], _base)}
    grouped = group(attacked, lambda r: (r.cell.track, slice_of(r), canonical([r.cell.threat, r.cell.surrogates])))
    twins = flags.undefended(attacked)
    made = [(members[0], _board(members, related, twins)) for members in sorted(grouped.values(), key=_order)]
    return over.eps([(_family(row), _threat(row), board) for row, board in made])


def _family(row: Result) -> str:
    """What boards have in common that differ only in eps."""
    threat = {name: value for name, value in _threat(row).items() if name != "eps"}
    return canonical([row.cell.track, slice_of(row), threat, row.cell.surrogates])


@lru_cache(maxsize=64)
def _required(kind: str, cards: int) -> tuple[str, str]:
    """(trait, the attacks with it that take a kind of data): a white-box entry needs one, plain or inside a wrapper.

    Where no required attack takes the kind of data, an iterative one is needed; none where there is none of these.
    """
    traits = ("required", "iterative")
    found = ((trait, " or ".join(registry.with_trait("attack", trait, kind))) for trait in traits)
    return next((pair for pair in found if pair[1]), ("", "any attack"))


def _order(members: Sequence[Result]) -> tuple[Any, ...]:
    cell, threat = members[0].cell, _threat(members[0])
    return (
        TRACKS.index(cell.track),
        slice_of(members[0]),
        threat["norm"],
        threat["access"],
        threat["eps"],
        canonical([threat, cell.surrogates]),
    )


def _threat(row: Result) -> dict[str, Any]:
    return {"norm": "", "eps": 0.0, "access": "", "queries": None, **(row.cell.threat or {})}


def _victim(row: Result) -> tuple[str, str]:
    return canonical(row.cell.model), canonical(row.cell.defense)


def _ball(row: Result) -> tuple[Any, ...]:
    return (*_victim(row), slice_of(row), _threat(row)["norm"], canonical(_target(row)))


def _base(row: Result) -> tuple[Any, ...]:
    """As `_ball` without the defense."""
    model, _, *rest = _ball(row)
    return (model, *rest)


def _target(row: Result) -> str | int | None:
    """The target of the threat: a rule or a class; None if any wrong class counts."""
    found: str | int | None = _threat(row).get("target")
    return found


def _finished(row: Result) -> bool:
    return row.status == "ok" and row.cell.attack is not None and "robust" in row.samples


def _is_planted(row: Result) -> bool:
    return is_control("attack", row.cell.attack)


def _board(members: list[Result], related: Mapping[Any, list[Result]], twins: flags.Twins) -> Board:
    cell, threat = members[0].cell, _threat(members[0])
    models, defenses = display(r.cell.model for r in members), display(r.cell.defense for r in members)
    attacks = display(r.cell.attack for r in members if r.cell.attack is not None)
    usual, planted = [r for r in members if not _is_planted(r)], [r for r in members if _is_planted(r)]
    sizes = Counter(int(r.samples["n"]) for r in usual if _finished(r))
    n = max(sizes, key=lambda size: (sizes[size], size), default=0)
    own = {canonical(r.cell.attack) for r in usual if r.cell.attack is not None and not r.cell.adaptive}

    lines: list[Line] = []
    targeted = _target(members[0]) is not None
    survived: dict[
        tuple[str, ...], tuple[Vector, Vector]
    ] = {}  # images that survived all attacks, and images that were attacked
    for (model, defense), rows in group(usual, _victim).items():
        done = [r for r in rows if _finished(r)]
        mine = Rows(
            every=tuple(rows),
            good=tuple(r for r in done if int(r.samples["n"]) == n),
            short=tuple(r for r in done if int(r.samples["n"]) != n),
            elsewhere=tuple(r for r in related.get(_ball(rows[0]), ()) if not _is_planted(r)),
            bare=tuple(r for r in related.get(_base(rows[0]), ()) if not _is_planted(r)),
        )
        missing = sorted(attacks[a] for a in own - {canonical(r.cell.attack) for r in rows})
        lines.append(_line({"model": models[model], "defense": defenses[defense]}, mine, attacks, missing, twins))
        worst = flags.survived(mine.good)
        if worst is not None:
            survived[lines[-1].key] = worst, _attacked(mine.good)
            if not targeted:
                lines[-1] = replace(lines[-1], kept=pack(worst), kept_of=len(worst))
    for (model, defense, attack), rows in group(planted, lambda r: (*_victim(r), canonical(r.cell.attack))).items():
        names = {"model": models[model], "defense": f"{defenses[defense]} under {attacks[attack]}"}
        lines.append(_planted_line(names, rows, attacks))

    def compare(a: Line, b: Line) -> tuple[float, float]:
        (left, tried), (right, too) = survived[a.key], survived[b.key]
        left, right = left[tried & too], right[tried & too]
        return (float(left.mean()) - float(right.mean()), mcnemar(left, right)) if len(left) else (0.0, 1.0)

    def order(line: Line) -> tuple[bool, float]:
        return low_first(line.value("target_rate")) if targeted else high_first(line.value("robust_acc"))

    placed = place(lines, order, compare, lambda line: high_first(line.value("clean_acc")))
    placed = placed if targeted else sentences.gained(placed, "robust_acc")
    data, ball = str(cell.data["name"]), ball_text(threat)
    limit = f", {threat['queries']} queries" if threat["queries"] else ""
    sources = " + ".join(label(s) for s in cell.surrogates or ())
    kind = {
        "white_box": "White box",
        "query": f"Query, {threat['access']} access",
        "transfer": f"Transfer from {sources}" if sources else "No box",
        "patch": "Patch",
    }[cell.track]
    required = _required(data_kind(members[0]), id(registry.cards()))[1]
    each = [
        *_attack_columns([r for r in usual if r.cell.attack is not None], attacks, targeted),
        *measures.columns(usual),
    ]
    primary, main = ("target_rate", columns.TARGETED) if targeted else ("robust_acc", columns.EVASION)
    passes = replace(columns.PASSES, main=cell.track != "query")  # queries have their own column
    return Board(
        id=slug(cell.track, data, ball.replace(" ", "-"), key=[slice_of(members[0]), threat, cell.surrogates]),
        track=cell.track,
        title=f"{kind}: {ball} on {data}{limit}",
        about=TARGETED if targeted else ABOUT[cell.track],
        facts={
            **slice_facts(members[0]),
            "threat": ball,
            "change": change(threat, data_kind(members[0])),
            "access to the surrogates" if sources else "access": f"{threat['access']}{limit}",
        },
        columns=columns.filled([*main, *each, passes, *columns.EVASION_MORE], placed),
        primary=primary,
        row_metric=primary,
        figure=over.queries(threat["queries"])
        if cell.track == "query" and not targeted
        else Scatter("clean_acc", "robust_acc"),
        lines=placed,
        notes=(NOTES[cell.track].format(required=required), *subgroups.alike(placed)),
        result=sentences.resistance(placed, primary) if targeted else sentences.survival(placed, primary),
    )


def _attacked(rows: Sequence[Result]) -> Vector:
    """Samples that count: with a target, those attacked in every row; otherwise all."""
    every = [r.outcome("attacked") if "attacked" in r.samples else np.ones(r.samples["n"], dtype=bool) for r in rows]
    return np.logical_and.reduce(every)


def _attack_columns(rows: Sequence[Result], attacks: Mapping[str, str], targeted: bool) -> list[Column]:
    plain = {attacks[canonical(r.cell.attack)] for r in rows if not r.cell.adaptive}
    knowing = {attacks[canonical(r.cell.attack)] for r in rows} - plain
    better: columns.Direction = "low" if targeted else "high"
    text = f"{'Target rate' if targeted else 'Robust accuracy'} under this attack alone, worst case over its seeds."
    return [
        *columns.under("attack", sorted(plain), "rate", text, better, heading=HEADING),
        *columns.under("attack", sorted(knowing), "rate", f"{text} Adaptive attack.", better, heading=HEADING),
    ]


# ------------------------------------------------------------------------------------------------------------ lines


def _line(
    names: dict[str, str], rows: Rows, attacks: Mapping[str, str], missing: Sequence[str], twins: flags.Twins
) -> Line:
    cell = rows.every[0].cell
    control = is_control("defense", cell.defense) or is_control("model", cell.model)
    compared = [*_compared(rows), *flags.clean_loss(rows.every, twins)]
    numbers, texts = _numbers(rows.good, attacks) if rows.good else ({}, {})
    if rows.good and _target(rows.every[0]) is None:
        kept = flags.survived(rows.good)
        assert kept is not None
        more, named, uneven = subgroups.worst(rows.good, kept)
        more |= subgroups.balanced(rows.good, kept)
        numbers, texts, compared = numbers | more, texts | named, [*compared, *uneven]
    found = in_order([*marks(rows.every), *compared, *_gaps(rows, missing), *flags.not_searched(rows.every)])
    reasons = ["control: planted by the suite, listed but never ranked"] if control else []
    reasons += problems(rows.every)
    reasons += sorted({f"check failed: {f.id}" for f in compared if f.severity == "fail"} - set(reasons))
    if rows.short:
        reasons.append(
            f"{what(rows.short[0])} was run on {rows.short[0].samples['n']} images, others on a different number"
        )
    if not rows.good:
        reasons.append("no attack was completed")
    elif cell.track == "white_box":
        trait, required = _required(data_kind(rows.every[0]), id(registry.cards()))
        if trait and not any(flags.has(r.cell.attack, trait) for r in rows.good):
            reasons.append(f"required attack missing: {required}")
        if label(cell.defense) != "none" and not any(r.cell.adaptive for r in rows.good):
            aims = " that can be targeted" if _target(rows.every[0]) is not None else ""
            reasons.append(f"no adaptive attack: none was run against this defense{aims}")
    judged = control and cell.track == "white_box" and _target(rows.every[0]) is None
    numbers |= {f"measure:{name}": number for name, number in measures.measured(rows.every).items()}
    return Line(
        names=names, numbers=numbers, texts=texts, reasons=tuple(reasons), flags=found, control=control,
        judged=judged, uncaught=flags.uncaught(rows.good, found) if judged else "",
        keys=tuple(r.cell.key for r in rows.every),
    )  # fmt: skip


def _compared(rows: Rows) -> list[Mark]:
    """Checks that compare several attacks on the same victim."""
    found = flags.wrong_total(rows.good)
    if rows.every[0].cell.track != "white_box":
        return found
    eps = _threat(rows.every[0])["eps"]
    black_box = [r for r in rows.elsewhere if r.cell.track != "white_box" and _threat(r)["eps"] == eps]
    bare = [r for r in rows.bare if _threat(r)["eps"] == eps]
    by_eps = group([r for r in rows.elsewhere if r.cell.track == "white_box"], lambda r: _threat(r)["eps"])
    return [
        *found,
        *(flags.not_broken_undefended(rows.good, bare) if label(rows.every[0].cell.defense) != "none" else ()),
        *flags.one_step_beats_many(rows.good),
        *flags.black_box_beats_white_box(rows.good, black_box),
        *flags.weak_attack_gap(rows.good),
        *flags.not_monotone(by_eps, eps),
    ]


def _gaps(rows: Rows, missing: Sequence[str]) -> list[Mark]:
    """Attacks that were not run on this entry."""
    if not rows.good:
        return []
    found = [Mark("info", "fewer_attacks", f"others were also attacked with {', '.join(missing)}")] if missing else []
    idle = [r for r in rows.every if r.status == "not_applicable"]
    return found + [Mark("info", "attack_not_applicable", f"{what(r)}: {why(r)}", r.cell.key) for r in idle]


def _planted_line(names: dict[str, str], rows: Sequence[Result], attacks: Mapping[str, str]) -> Line:
    """The line of an attack that is broken on purpose and must get a flag."""
    good = [r for r in rows if _finished(r)]
    found = in_order([*marks(rows), *flags.wrong_total(good)])
    seen = any(f.severity in ("flag", "fail") for f in found)
    numbers, texts = _numbers(good[:1], attacks) if good else ({}, {})
    numbers = {name: number for name, number in numbers.items() if not name.startswith("attack:")}
    return Line(
        names=names, numbers=numbers, texts=texts, flags=found, control=True, judged=True,
        uncaught="" if seen else "no check fired on it",
        reasons=("control: a planted attack, listed but never counted", *problems(r for r in rows if r.status != "ok")),
        keys=tuple(r.cell.key for r in rows),
    )  # fmt: skip


def _numbers(good: Sequence[Result], attacks: Mapping[str, str]) -> tuple[dict[str, Number], dict[str, str]]:
    keys = tuple(r.cell.key for r in good)
    worst = flags.survived(good)
    assert worst is not None
    targeted, tried = _target(good[0]) is not None, _attacked(good)
    n = int(tried.sum())

    def counted(left: Vector, keys: tuple[str, ...]) -> Number:
        return share(float((left[tried] ^ targeted).sum()), n, keys)

    by_attack: dict[str, Number] = {}
    for description, rows in group(good, lambda r: canonical(r.cell.attack)).items():
        left = flags.survived(rows)
        assert left is not None
        by_attack[attacks[description]] = counted(left, tuple(r.cell.key for r in rows))
    first = high_first if targeted else low_first
    strongest = min(by_attack, key=lambda name: (first(by_attack[name].value), name))
    from_rows = by_attack[strongest].keys if len(by_attack) == 1 else keys
    numbers = {
        "target_rate" if targeted else "robust_acc": counted(worst, from_rows),
        "seeds": Number(float(len({r.cell.seed for r in good})), keys=keys),
        **{f"attack:{name}": number for name, number in by_attack.items()},
    }
    if targeted:
        right = np.logical_and.reduce([r.outcome("robust") for r in good])
        numbers["robust_acc"] = share(float(right.sum()), len(right), from_rows)
        for name in ("target_rate_clean", "target_rate_noise"):  # targets may differ by seed: take the highest rate
            found = [stored(r, name) for r in good if metric(r, name) is not None]
            if found:
                numbers[name] = max(found, key=lambda number: (number.value, number.keys))
    if all("clean" in r.samples for r in good):
        clean = float(np.mean([r.outcome("clean").sum() for r in good]))  # may differ if the victim is randomised
        numbers["clean_acc"] = share(clean, len(worst), keys[:1])
    for name in (*READ, *over.marks(_threat(good[0])["queries"])):
        found = [stored(r, name) for r in good if metric(r, name) is not None]
        if found:
            numbers[name] = min(found, key=lambda number: (number.value, number.keys))
    passes = [r.counts.get("forwards_per_sample", 0.0) + r.counts.get("backwards_per_sample", 0.0) for r in good]
    if any(passes):
        numbers["passes"] = Number(float(sum(passes)), keys=keys)
    return numbers, {"worst_attack": strongest}
