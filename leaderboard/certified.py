"""Boards of the certified track: certifiers of defended models, ranked by the accuracy that they prove."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import bdtrc

from siegebench import registry, signatures
from siegebench.cells import Result, canonical, eps_text, label, pack

from . import columns, flags, sentences
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
    marks,
    place,
    problems,
    share,
    slice_facts,
    slice_of,
    slug,
)
from .figures import Curves
from .stats import Vector, mean_interval, paired_means

BROKEN = "certificate_broken"
CHANCE = 0.01  # smallest probability of so many wrong certificates that is not a fault of a statistical certifier
ABOUT = (
    "A certified image is classified correctly, and a proof says that no image within the radius gets another class. "
    "Ranked by certified accuracy, the mean over the radii; misclassified images and abstentions count as not "
    "certified. The table also gives the accuracy under the strongest attack within the same radius, which no proof "
    "can exceed. Entries whose means do not differ significantly in a paired test on the same images share a rank "
    "group, ordered by clean accuracy."
)


@dataclass(frozen=True)
class Rows:
    """The rows of one certified model: certificates, and attacks by their radius."""

    proofs: tuple[Result, ...]
    attacks: tuple[Result, ...]
    radii: tuple[float, ...]

    def certified(self, k: int) -> Vector:
        """Certified at radius number k with every seed, bool [N]."""
        return np.logical_and.reduce([row.outcome(f"certified@{k}") for row in self.proofs])

    def within(self, k: int) -> list[Result]:
        """The attacks within radius number k."""
        return [row for row in self.attacks if (row.cell.threat or {})["eps"] <= self.radii[k]]


def boards(rows: Sequence[Result]) -> list[Board]:
    """One board for each slice of the data, norm and list of radii; attacks join the radii that they stay within."""
    mine = [r for r in rows if r.cell.track == "certified" and r.cell.threat is not None]
    proofs = [r for r in mine if r.cell.radii is not None and r.cell.backdoor is None]
    others = [r for r in mine if r.cell.attack is not None or r.cell.backdoor is not None]
    twins = flags.undefended([r for r in proofs if r.status == "ok"])
    found = group(proofs, lambda r: (slice_of(r), _norm(r), tuple(r.cell.radii or ())))
    return [_board(members, others, twins) for members in found.values()]


def broken(results: Sequence[Board]) -> list[str]:
    """One sentence per certifier whose certificates an attack broke. If there is any, the run has failed."""
    return [
        f"{line.title} ({board.title}): {mark.evidence}"
        for board in results
        for line in board.lines
        if not line.control
        for mark in line.flags
        if mark.id == BROKEN and mark.severity == "fail"
    ]


def _norm(row: Result) -> str:
    return str((row.cell.threat or {})["norm"])


def _entry(row: Result) -> tuple[str, str, str]:
    cell = row.cell
    return canonical(cell.model), canonical(cell.defense), canonical(cell.certifier)


def _victim(row: Result) -> tuple[str, str, str]:
    """What is attacked: certifiers that deploy the model itself share the attacks on it."""
    model, defense, certifier = _entry(row)
    return model, defense, certifier if _declares(row.cell.certifier, "deploys") else canonical(None)


def _declares(certifier: Mapping[str, Any] | None, name: str) -> bool:
    """Whether a class attribute of a certifier is true; of one that is not registered, none is."""
    called = str((certifier or {}).get("name"))
    return ("certifier", called) in registry.cards() and signatures.declared("certifier", called).get(name) is True


def _text(norm: str, radius: float) -> str:
    return eps_text(radius) if norm == "linf" else f"{radius:g}"


def _board(members: list[Result], others: list[Result], twins: flags.Twins) -> Board:
    first = members[0]
    norm, radii = _norm(first), tuple(first.cell.radii or ())
    shown = [display(d) for d in zip(*((r.cell.model, r.cell.defense, r.cell.certifier) for r in members), strict=True)]
    by_entry = group([r for r in others if r.cell.attack is not None], lambda r: (_victim(r), slice_of(r), _norm(r)))
    by_backdoor = group(
        [r for r in others if r.cell.attack is None],
        lambda r: (_entry(r), slice_of(r), _norm(r), tuple(r.cell.radii or ())),
    )
    lines, means = [], {}
    for entry, rows in group(members, _entry).items():
        names = dict(
            zip(("model", "defense", "certifier"), (s[e] for s, e in zip(shown, entry, strict=True)), strict=True)
        )
        tried = by_entry.get((_victim(rows[0]), slice_of(first), norm), [])
        poisoned = by_backdoor.get((entry, slice_of(first), norm, radii), [])
        line, mean = _line(names, rows, tried, poisoned, radii)
        line = replace(line, flags=in_order([*line.flags, *flags.clean_loss(rows, twins)]))
        lines.append(line)
        if mean is not None:
            means[line.key] = mean

    def compare(a: Line, b: Line) -> tuple[float, float]:
        return paired_means(means[a.key], means[b.key])

    placed = place(
        lines, lambda line: high_first(line.value("certified_acc")), compare,
        lambda line: high_first(line.value("clean_acc")),
    )  # fmt: skip
    data = str(first.cell.data["name"])
    texts = [_text(norm, radius) for radius in radii]
    return Board(
        id=slug("certified", data, norm, key=[slice_of(first), norm, list(radii)]),
        track="certified",
        title=f"Certified: {norm} up to {texts[-1]} on {data}",
        about=ABOUT,
        facts={**slice_facts(first), "norm": norm, "radii": ", ".join(texts)},
        columns=columns.filled(columns.certified(texts), placed),
        primary="certified_acc",
        row_metric="certified_acc",
        figure=Curves(
            tuple((f"certified_acc@{k}", _mark(norm, radius)) for k, radius in enumerate(radii)),
            start=("clean_acc", "clean"), title=f"radius in {norm}{', of 255' if norm == 'linf' else ''}", log=False,
        ),
        lines=placed,
        result=sentences.proof(placed, "certified_acc"),
        notes=(
            *_notes(members),
            f"Two entries are compared image by image by what is certified within {texts[_middle(radii)]}.",
            *((TRIGGERED,) if any("worst_backdoor" in line.texts for line in placed) else ()),
        ),
    )  # fmt: skip


def _mark(norm: str, radius: float) -> float:
    mark = float(round(255 * radius, 2) if norm == "linf" else radius)
    return int(mark) if mark.is_integer() else mark  # of a stranger it may be infinite


def _notes(members: Sequence[Result]) -> tuple[str, ...]:
    out = []
    for certifier in {canonical(r.cell.certifier): r.cell.certifier or {} for r in members}.values():
        if _chance(certifier):
            known = ", ".join(f"{k} = {certifier[k]:g}" for k in ("sigma", "n", "alpha") if k in certifier)
            most = f"each certificate is wrong with probability {_chance(certifier):g} at most."
            out.append(f"{label(certifier)} ({known}): {most}")
    return tuple(sorted(out))


TRIGGERED = (
    "After training on a poisoned set, images with the trigger count as correct if they get their own label; an "
    "abstention is no success. No attack is run on these networks."
)


def _chance(certifier: dict[str, Any]) -> float:
    """The probability with which a certificate may be wrong; 0 for a proof."""
    return float(certifier.get("alpha", 0.0)) if _declares(certifier, "statistical") else 0.0


def _line(
    names: dict[str, str],
    proofs: list[Result],
    attacks: list[Result],
    poisoned: list[Result],
    radii: tuple[float, ...],
) -> tuple[Line, Vector | None]:
    """The line of one certified model, and for each image the fraction of the radii at which it is certified."""
    every = [*proofs, *attacks, *poisoned]
    cell = proofs[0].cell
    control = any(is_control(k, getattr(cell, k)) for k in ("model", "defense", "certifier"))
    reasons = ["control: planted by the suite, listed but never ranked"] if control else []
    good = [r for r in proofs if r.status == "ok" and f"certified@{len(radii) - 1}" in r.samples]
    tried = [r for r in attacks if r.status == "ok" and "refuted" in r.samples]
    found = marks(every)
    line = Line(names=names, control=control, judged=control, keys=tuple(r.cell.key for r in every))
    if not good or len({r.samples["n"] for r in (*good, *tried)}) > 1:
        told = problems(every) or ["its rows have different numbers of images" if good else "nothing was certified"]
        return replace(line, reasons=(*reasons, *told), flags=in_order(found), uncaught=_uncaught(control, found)), None
    rows = Rows(tuple(good), tuple(tried), radii)
    broken = _broken(rows)
    found += broken
    reasons += problems(every) + [f"check failed: {mark.id}" for mark in broken if mark.severity == "fail"][:1]
    missing = [_text(_norm(proofs[0]), r) for k, r in enumerate(radii) if r > 0 and not rows.within(k)]
    if missing:
        reasons.append(f"not attacked within {', '.join(missing)}")
    numbers, mean = _numbers(rows)
    harmed, texts = _triggered([r for r in poisoned if r.status == "ok" and "abstained_triggered" in r.samples], radii)
    return replace(
        line, numbers={**numbers, **harmed}, texts=texts, reasons=tuple(reasons), flags=in_order(found),
        uncaught=_uncaught(control, found), kept=pack(kept := rows.certified(_middle(radii))), kept_of=len(kept),
    ), mean  # fmt: skip


def _middle(radii: Sequence[float]) -> int:
    """The radius at which two entries are compared image by image."""
    return len(radii) // 2


def _uncaught(control: bool, found: Sequence[Mark]) -> str:
    return "" if not control or any(m.id == BROKEN for m in found) else "no attack broke one of its certificates"


def _broken(rows: Rows) -> list[Mark]:
    """Certificates that an attack broke: adversarial images within the radius of an image that is certified."""
    out = []
    chance = _chance(rows.proofs[0].cell.certifier or {})
    for k, radius in enumerate(rows.radii):
        certified = rows.certified(k)
        for row in rows.within(k):
            wrong = certified & row.outcome("refuted")
            count, of = int(wrong.sum()), int(certified.sum())
            if count == 0:
                continue
            likely = chance > 0 and float(bdtrc(count - 1, of, chance)) >= CHANCE
            where = ", ".join(map(str, np.flatnonzero(wrong)[:5].tolist()))
            told = (
                f"{label(row.cell.attack)} finds adversarial images of {count} of {of} images within their certified "
                f"radius {_text(_norm(row), radius)} (image {where} of the slice, the first is 0)"
            )
            told += f"; {chance * of:.2g} are expected at most" if chance else ""
            out.append(Mark("flag" if likely else "fail", BROKEN, told, row.cell.key))
    return out


def _numbers(rows: Rows) -> tuple[dict[str, Number], Vector]:
    proofs, keys = rows.proofs, tuple(r.cell.key for r in rows.proofs)
    n = int(proofs[0].samples["n"])
    certified = [rows.certified(k) for k in range(len(rows.radii))]
    mean = np.mean(certified, axis=0)
    low, high = mean_interval(mean.tolist()) or (None, None)
    clean = np.logical_and.reduce([r.outcome("clean") for r in proofs])
    abstained = np.logical_or.reduce([r.outcome("abstained") for r in proofs])
    numbers = {
        "certified_acc": Number(float(mean.mean()), low, high, n, keys),
        "clean_acc": share(int(clean.sum()), n, keys),
        "abstained": share(int(abstained.sum()), n, keys),
        "seeds": Number(float(len({r.cell.seed for r in proofs}))),
    }
    seconds = [
        float(r.timing["seconds"]) - float(r.timing.get("training") or 0) for r in proofs if "seconds" in r.timing
    ]
    if seconds:
        numbers["seconds"] = Number(max(0.0, float(np.median(seconds))) / n, keys=keys)
    bounds = []
    for k, one in enumerate(certified):
        numbers[f"certified_acc@{k}"] = share(int(one.sum()), n, keys)
        tried = rows.within(k)
        if tried:
            left = np.logical_and.reduce([r.outcome("robust") for r in tried])
            bounds.append(left)
            numbers[f"attacked_acc@{k}"] = share(int(left.sum()), n, tuple(r.cell.key for r in tried))
    if len(bounds) == len(certified):
        upper = float(np.mean(bounds))
        attacked = tuple(r.cell.key for r in rows.attacks)
        numbers["attacked_acc"] = Number(upper, keys=attacked)
        numbers["gap"] = Number(upper - float(mean.mean()), keys=(*keys, *attacked))
    return numbers, mean


def _triggered(rows: list[Result], radii: tuple[float, ...]) -> tuple[dict[str, Number], dict[str, str]]:
    """(numbers, texts) of the backdoor with whose trigger the certifier abstains most; empty without rows.

    As without a backdoor, an image counts as certified with every seed, and as abstained with any.
    """
    worst: dict[str, Number] = {}
    name, most = "", -1.0
    for of in group(rows, lambda r: canonical(r.cell.backdoor)).values():
        n, keys = int(of[0].samples["n"]), tuple(r.cell.key for r in of)
        found = {}
        for ending, sample in (("_triggered", "_triggered"), ("_poisoned", "")):
            abstained = np.logical_or.reduce([r.outcome(f"abstained{sample}") for r in of])
            found[f"abstained{ending}"] = share(int(abstained.sum()), n, keys)
            held = [np.logical_and.reduce([r.outcome(f"certified{sample}@{k}") for r in of]) for k in range(len(radii))]
            found[f"certified_acc{ending}"] = Number(float(np.mean(held)), n=n, keys=keys)
        if (value := found["abstained_triggered"].value or 0.0) > most:
            worst, name, most = found, label(of[0].cell.backdoor), value
    return worst, {"worst_backdoor": name} if name else {}
