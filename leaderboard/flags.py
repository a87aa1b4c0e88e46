"""Checks across rows: compare attacks on the same victim to detect masked gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from siegebench import registry
from siegebench.cells import Result, canonical, eps_text, label

from .board import OF_CLEAN as OF_IMAGES
from .board import Mark, data_kind, metric, slice_of
from .stats import Vector, tolerance

GAP = 0.20  # drop of robust accuracy from PGD on cross-entropy to the worst case over all attacks
LOSS = 0.10  # largest loss of clean accuracy by a defense without a flag
OF_CLEAN = (*OF_IMAGES, "clean_loss")  # flags of clean images say nothing about masked gradients
BROKEN = 0.01  # robust accuracy of a network that is broken
BLACK_BOX_SLACK = 0.002  # the constant of the check in AutoAttack


def core(attack: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The innermost attack of nested wrappers: `torchattacks/PGD` for `eot(torchattacks/PGD)`."""
    inner = (attack or {}).get("attack")
    return core(inner) if isinstance(inner, Mapping) else attack or {}


def has(attack: Mapping[str, Any] | None, trait: str) -> bool:
    """Whether the innermost attack has a trait."""
    return trait in _traits(str(core(attack).get("name", "")), id(registry.cards()))


@lru_cache(maxsize=4096)
def _traits(name: str, cards: int) -> frozenset[str]:
    """The traits of an attack. Names that are unknown are slow to look up, and rows of others have thousands."""
    return registry.traits("attack", name)


def is_plain_pgd_ce(row: Result) -> bool:
    """Whether the attack is plain PGD on cross-entropy, without adaptation to the defense."""
    attack = row.cell.attack or {}
    plain = "plain" in _traits(str(attack.get("name", "")), id(registry.cards()))
    return plain and attack.get("loss", "ce") in ("ce", "cross_entropy") and not row.cell.adaptive


def held(row: Result) -> Vector:
    """Samples that survived the attack of one row: still correctly classified, or (targeted) not the target class."""
    return ~row.outcome("target") if "target" in row.samples else row.outcome("robust")


def share_held(row: Result) -> float | None:
    """Fraction of the samples that survived the attack of one row; None without outcomes."""
    if "target" in row.samples:
        return float(held(row).mean())
    return metric(row, "robust_acc")


def survived(rows: Iterable[Result]) -> Vector | None:
    """Samples that survived the attacks of all rows (the worst case per sample); None without rows."""
    outcomes = [held(r) for r in rows]
    return np.logical_and.reduce(outcomes) if outcomes else None


Twins = Mapping[tuple[str, tuple[str, ...]], float]  # clean accuracy of undefended models by model and slice


def undefended(rows: Iterable[Result]) -> Twins:
    """The clean accuracy of each model without a defense, on each slice of the data."""
    return {
        (canonical(r.cell.model), slice_of(r)): clean
        for r in rows
        if r.status == "ok" and label(r.cell.defense) == "none" and (clean := metric(r, "clean_acc")) is not None
    }


def clean_loss(rows: Sequence[Result], twins: Twins) -> list[Mark]:
    """Flag if a defense loses more than 10 points of the clean accuracy that the same model has without it."""
    before = twins.get((canonical(rows[0].cell.model), slice_of(rows[0])))
    found = [(clean, r) for r in rows if r.status == "ok" and (clean := metric(r, "clean_acc")) is not None]
    if before is None or not found or label(rows[0].cell.defense) == "none":
        return []
    after, row = found[0]
    if before - after <= LOSS + 1e-9:
        return []
    told = f"clean accuracy {100 * after:.1f} %, without the defense {100 * before:.1f} %"
    return [Mark("flag", "clean_loss", f"{told}: {100 * (before - after):.1f} points lost", row.cell.key)]


def one_step_beats_many(rows: Sequence[Result]) -> list[Mark]:
    """Flag if one-step attacks break images that all iterative attacks fail on, or reach a lower accuracy."""
    single = [r for r in rows if has(r.cell.attack, "one_step")]
    after_one = survived(single)
    after_many = survived(r for r in rows if has(r.cell.attack, "iterative"))
    if after_one is None or after_many is None:
        return []
    n = len(after_one)
    missed = int((after_many & ~after_one).sum())
    low, high = float(after_one.mean()), float(after_many.mean())
    if missed <= max(1.0, 0.01 * n) and low >= high - tolerance(high, n):
        return []
    return [
        Mark(
            "fail",
            "one_step_beats_many",
            f"one step breaks {missed} of {n} images that the iterative attacks do not "
            f"(robust accuracy {100 * low:.1f} against {100 * high:.1f} %)",
            single[0].cell.key,
        )
    ]


def black_box_beats_white_box(rows: Sequence[Result], queries: Sequence[Result]) -> list[Mark]:
    """Flag if a black-box attack is stronger than every white-box attack: gradients are masked."""
    white = {label(r.cell.attack): share_held(r) for r in rows}
    known = [v for v in white.values() if v is not None]
    if not known:
        return []
    best = min(known)
    out = []
    for row in queries:
        black, n = share_held(row), int(row.samples.get("n", 0))
        if black is not None and black < best - BLACK_BOX_SLACK:
            severity = "fail" if black < best - tolerance(best, n) else "flag"
            evidence = (
                f"robust accuracy {100 * black:.1f} % under {label(row.cell.attack)}, "
                f"{100 * best:.1f} % under the best white-box attack"
            )
            out.append(Mark(severity, "black_box_beats_white_box", evidence, row.cell.key))
    return out


def weak_attack_gap(rows: Sequence[Result]) -> list[Mark]:
    """Flag if PGD on cross-entropy is far weaker than the worst case: the loss saturates, as with large logits."""
    gap = plain_gap(rows)
    if gap is None or gap[0] - gap[1] <= GAP:
        return []
    plain, worst = gap
    key = next(r.cell.key for r in rows if is_plain_pgd_ce(r))
    evidence = f"robust accuracy {100 * plain:.1f} % under PGD on cross-entropy, {100 * worst:.1f} % under all attacks"
    return [Mark("info", "weak_attack_gap", evidence, key)]


def plain_gap(rows: Sequence[Result]) -> tuple[float, float] | None:
    """(robust accuracy under plain PGD-CE, worst case); None if plain PGD-CE was not run."""
    plain, worst = survived(r for r in rows if is_plain_pgd_ce(r)), survived(rows)
    return None if plain is None or worst is None else (float(plain.mean()), float(worst.mean()))


def wrong_total(rows: Sequence[Result]) -> list[Mark]:
    """Flag if a row's robust accuracy is not the mean of its outcomes."""
    out = []
    for row in rows:
        written, counted = metric(row, "robust_acc"), float(row.outcome("robust").mean())
        if written is not None and abs(written - counted) > 1e-5:
            evidence = f"robust_acc is {written:.6g}, its outcomes give {counted:.6g}"
            out.append(Mark("fail", "wrong_total", evidence, row.cell.key))
    return out


def not_monotone(by_eps: Mapping[float, Sequence[Result]], eps: float) -> list[Mark]:
    """Flag if robust accuracy is higher at a larger eps than at a smaller one, for the same attack.

    Args:
        by_eps: rows of one victim under one norm and access.
        eps: the budget to check.
    """
    out = []
    smaller = [r for e in sorted(by_eps) if e < eps for r in by_eps[e]]
    for row in by_eps.get(eps, ()):
        here, n = share_held(row), int(row.samples["n"])
        for other in smaller:
            there = share_held(other)
            alike = other.cell.attack == row.cell.attack and other.cell.seed == row.cell.seed
            if not alike or here is None or there is None or int(other.samples["n"]) != n:
                continue
            if here > there + tolerance(there, n):
                text = eps_text((other.cell.threat or {})["eps"])
                evidence = (
                    f"robust accuracy {100 * here:.1f} % under {label(row.cell.attack)}, "
                    f"but only {100 * there:.1f} % at the smaller eps {text}"
                )
                out.append(Mark("fail", "not_monotone", evidence, row.cell.key))
                break
    return out


def not_broken_undefended(rows: Sequence[Result], twins: Sequence[Result]) -> list[Mark]:
    """Fail if the attacks on a defended model do not break the same model without the defense, but others do.

    Args:
        rows: of the white-box attacks on the defended model.
        twins: of all attacks on the model without a defense: same images, norm and eps.
    """
    used = {canonical([r.cell.track, r.cell.threat, r.cell.attack, r.cell.seed]) for r in rows}
    alike = [r for r in twins if canonical([r.cell.track, r.cell.threat, r.cell.attack, r.cell.seed]) in used]
    left, worst = survived(alike), survived(twins)
    if left is None or worst is None:
        return []
    n = len(left)
    if float(worst.mean()) > BROKEN or float(left.mean()) <= BROKEN + tolerance(BROKEN, n):
        return []
    told = (
        f"without the defense, robust accuracy is {100 * float(left.mean()):.1f} % under these attacks and "
        f"{100 * float(worst.mean()):.1f} % under others: images that withstand them with the defense prove nothing"
    )
    return [Mark("fail", "not_broken_undefended", told, alike[0].cell.key)]


def knowing_is_weaker(static: Vector, knowing: Vector) -> list[Mark]:
    """Fail if attacks that know a detector succeed on fewer images than those that do not.

    Args:
        static, knowing: images that stay correctly classified or are detected under each sort of attack, bool [N].
    """
    low, high = float(static.mean()), float(knowing.mean())
    if high <= low + tolerance(low, len(static)):
        return []
    told = f"robust accuracy {100 * high:.1f} % under attacks that know the detector, {100 * low:.1f} % under others"
    return [Mark("fail", "knowing_is_weaker", told)]


def only_pixels(row: Result, others: Iterable[Result]) -> list[Mark]:
    """Flag if a detector finds images of other data no better than statistics of the pixels, without a network, do.

    Such images differ in camera, codec and brightness too.

    Args:
        others: rows of the same board.
    """
    cell, own = row.cell, metric(row, "auroc")
    if own is None or (cell.inputs or {}).get("kind") != "ood" or _is_reference(row):
        return []
    alike = [r for r in others if r.cell.inputs == cell.inputs and r.cell.seed == cell.seed and _is_reference(r)]
    best = max((v for r in alike if (v := metric(r, "auroc")) is not None), default=None)
    if best is None or own > best:
        return []
    told = f"AUROC {own:.3f} on {cell.labels['inputs']}, {best:.3f} by statistics of the pixels without a network: "
    return [Mark("flag", "codec", f"{told}another camera or codec explains this", cell.key)]


def _is_reference(row: Result) -> bool:
    return "reference" in registry.traits("detector", str((row.cell.detector or {}).get("name", "")))


def not_searched(rows: Sequence[Result]) -> list[Mark]:
    """Say if the attack that adapts by itself was left out for a defended white-box entry."""
    cell = rows[0].cell
    if cell.track != "white_box" or label(cell.defense) == "none" or (cell.threat or {}).get("norm") == "l0":
        return []
    if any(has(r.cell.attack, "adaptive") for r in rows):
        return []
    able = ", ".join(registry.with_trait("attack", "adaptive", data_kind(rows[0])))
    told = f"{able} was not run: the adaptive attacks are only those that the defense declares itself"
    return [Mark("info", "not_searched", told)] if able else []


def uncaught(white: Sequence[Result], flags: Iterable[Mark]) -> str:
    """Reason why a planted victim was not detected; empty if it was.

    The victim must have a visible flag, and its worst case must be lower than its robust accuracy under plain PGD-CE by
    more than `GAP`: the checks must detect the masking, and an attack must break it.
    """
    if not any(f.severity in ("flag", "fail") and f.id not in OF_CLEAN for f in flags):
        return "no check fired on it"
    gap = plain_gap(white)
    if gap is None:
        return "plain PGD on cross-entropy was not run on it"
    plain, worst = gap
    if plain - worst <= GAP:
        return (
            f"its worst case ({100 * worst:.1f} %) is not {100 * GAP:.0f} points below its robust accuracy under PGD "
            f"on cross-entropy ({100 * plain:.1f} %)"
        )
    return ""
