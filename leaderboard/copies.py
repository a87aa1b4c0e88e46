"""Copies of victims, and the controls that they are compared with: the same images without the answers to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from siegebench import registry, signatures
from siegebench.cells import Result, canonical

from .board import Number, group, is_control, stored
from .stats import ALPHA, Vector, average, mean_interval, paired_means


@dataclass(frozen=True)
class Copies:
    """The finished rows of one theft on one victim with one budget: one row a seed."""

    description: Mapping[str, Any]
    name: str
    rows: tuple[Result, ...]

    @property
    def control(self) -> bool:
        return is_control("theft", self.description)

    @property
    def agree(self) -> Vector:
        """How often each image agrees, over the seeds, [N]."""
        return np.asarray(np.mean([row.outcome("agree") for row in self.rows], axis=0))

    def number(self, name: str) -> Number:
        """A figure; one row keeps its interval, several give their mean."""
        if len(self.rows) == 1:
            return stored(self.rows[0], name)
        values = [v for row in self.rows if (v := stored(row, name).value) is not None]
        keys = tuple(row.cell.key for row in self.rows)
        low, high = (mean_interval(self.agree.tolist()) or (None, None)) if name == "agreement" else (None, None)
        return Number(average(values) if values else None, low, high, keys=keys)


def budget_of(row: Result) -> int:
    return int((row.cell.threat or {}).get("queries") or 0)


def copies_of(rows: Sequence[Result], budget: int, names: Mapping[str, str]) -> dict[str, Copies]:
    """The finished thefts with one budget, by name."""
    good = [r for r in rows if r.status == "ok" and "agree" in r.samples and budget_of(r) == budget]
    found = group(good, lambda r: names[canonical(r.cell.theft)])
    return {name: Copies(of[0].cell.theft or {}, name, tuple(of)) for name, of in found.items()}


def has(description: Mapping[str, Any], trait: str) -> bool:
    return trait in registry.traits("theft", str(description.get("name")))


def declared(kind: str, description: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The class attributes of an entry; none of one that is not registered."""
    name = str((description or {}).get("name"))
    return signatures.declared(kind, name) if (kind, name) in registry.cards() else {}


@dataclass(frozen=True)
class Thieves:
    """What the thefts of a network are worth, over all its defenses.

    Attributes:
        idle: thefts that exceed their control on no victim.
        reason: why no theft shows what the answers are worth; empty if one does.
    """

    idle: frozenset[str]
    reason: str


def thieves_of(victims: Sequence[Mapping[str, Copies]]) -> Thieves:
    """What the thefts of a network are worth, from the copies of each victim that has it."""
    compared, useful, lacking = set[str](), set[str](), list[str]()
    for copies in victims:
        for theft in (found for found in copies.values() if not found.control):
            control, why = control_of(theft.rows[0], copies)
            if control is None or why:
                lacking.append(f"{theft.name}: {why}")
                continue
            compared.add(theft.name)
            if exceeds(theft, control):
                useful.add(theft.name)
    if useful:
        return Thieves(frozenset(compared - useful), "")
    return Thieves(frozenset(), "no theft exceeds its control on this network" if compared else "; ".join(lacking[:1]))


def exceeds(theft: Copies, control: Copies) -> bool:
    """Whether a theft agrees significantly more often than its control, on the same images."""
    gain, p = paired_means(theft.agree, control.agree)
    return gain > 0 and p <= ALPHA


def control_of(row: Result, copies: Mapping[str, Copies]) -> tuple[Copies | None, str]:
    """The best control with the images of a theft, and why it does not suffice; empty if it does.

    Args:
        copies: the thefts and controls on the same victim, with the same budget.
    """
    references = [found for found in copies.values() if found.control and has(found.description, "reference")]
    fitting = [found for found in references if _same_images(found.description, row)]
    if not fitting:
        known = " or ".join(n for n in registry.with_trait("theft", "reference") if _same_images({"name": n}, row))
        return None, f"its control was not run: {known}"
    why = ""
    if all(declared("theft", found.description).get("trains") is False for found in fitting):
        why = "its only control is an untrained network"
    elif _in_domain(row) and not any(_labelled(found.description) for found in fitting):
        why = "its images are of the victim's own data, and own_labels, which has their true labels, was not run"
    return max(fitting, key=lambda found: (found.agree.mean(), found.name)), why


def _in_domain(row: Result) -> bool:
    """Whether a thief queries images of the victim's own data, whose true labels are worth as much as answers."""
    return row.cell.pool is not None and row.cell.pool["source"] == row.cell.data["source"]


def _labelled(theft: Mapping[str, Any]) -> bool:
    return declared("theft", theft).get("labelled") is True


def _same_images(control: Mapping[str, Any], row: Result) -> bool:
    """Whether a control has no labelled images that a theft does not have: of the pool, or of the victim's data."""
    theft = row.cell.theft or {}
    if _labelled(control):
        return row.cell.pool is not None
    return set(_sees(control)) <= set(_sees(theft))


def _sees(theft: Mapping[str, Any]) -> tuple[str, ...]:
    """The labelled images that a theft uses, by its card."""
    found = registry.cards().get(("theft", str(theft.get("name"))))
    return () if found is None else found.card.sees
