"""The contract of thefts, one function per clause; on a small convolutional network and noise images."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.testing import specimens
from siegebench.testing.specimens import (
    SIZE,
    Case,
    network,
    other_global_numbers,
    planted_set,
    require,
    state_of,
)
from siegebench.threat import Access, ThreatModel
from siegebench.tracks.thieving import student
from siegebench.train import Recipe
from siegebench.types import Attacker
from siegebench.weights import weights_hash

BUDGET = 30
RECIPE = Recipe(epochs=1, batch=16)


@dataclass
class _Seen:
    """What the victim was asked."""

    images: list[Tensor] = field(default_factory=list)


class _Watched(Oracle):
    """An oracle that keeps the images in the order in which they were asked."""

    def __init__(self, model: Classifier, threat: ThreatModel, draws: Draws) -> None:
        super().__init__(model, threat, draws)
        self.seen = _Seen()

    def _pass(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z, rows = super()._pass(x)
        self.seen.images.append(x.detach().clone())
        return z, rows


def _victim(turned: bool = False) -> Classifier:
    """A frozen network; `turned`: one that names other classes."""
    model = network().requires_grad_(False)
    if turned:
        layer = [m for m in model.modules() if isinstance(m, torch.nn.Linear)][-1]
        layer.weight.copy_(layer.weight.roll(3, dims=0))
        layer.bias.copy_(layer.bias.roll(3, dims=0))
    return model


def _stolen(
    case: Case, victim: Classifier, budget: int = BUDGET, access: Access | None = None
) -> tuple[Classifier, _Watched]:
    data = planted_set()
    pool = data if case.entry.labelled else data.select(torch.arange(len(data)))
    if not case.entry.labelled:
        pool.labels.zero_()
    draws = Draws(0, torch.arange(budget))
    blank = network().fresh
    attacker = Attacker(
        (specimens.KIND.channels, SIZE, SIZE), pool if case.entry.pooled else None, case.granted(), blank,
        lambda x, answers, seed, augment: student(blank, RECIPE, x, answers, seed, augment),
    )  # fmt: skip
    oracle = _Watched(victim, ThreatModel(access=access or case.entry.access(), queries=1), draws)
    return case.quick(oracle, attacker, draws), oracle


def returns_a_copy_with_the_access_it_declares(case: Case) -> None:
    case.kept["copy"], case.kept["oracle"] = _stolen(case, _victim())  # its __call__ checks the copy


def asks_each_slot_once_at_most(case: Case) -> None:
    queries = case.kept["oracle"].ledger.queries
    require(int(queries.max()) <= 1, f"a slot was asked {int(queries.max())} times")
    asked = sum(len(x) for x in case.kept["oracle"].seen.images)
    require(asked == int(queries.sum()), f"{asked} images were asked about, {int(queries.sum())} queries are booked")
    asks = case.entry.access() != "none"
    require(asks == (asked > 0), f"needs {case.entry.access()} access, and asked {asked} times")


def says_how_many_images_of_the_pool_it_needs(case: Case) -> None:
    needed = case.entry.images(BUDGET)
    require(0 <= needed <= BUDGET, f"{needed} images of the pool for {BUDGET} queries")
    require(case.entry.pooled or needed == 0, f"declares pooled = False, and needs {needed} images of the pool")


def makes_the_same_copy_for_the_same_draws(case: Case) -> None:
    with other_global_numbers(99):
        again, _ = _stolen(case, _victim())
    same = weights_hash(again.state_dict()) == weights_hash(case.kept["copy"].state_dict())
    require(same, "a second run gave another copy")


def asks_the_same_images_first_with_a_smaller_budget(case: Case) -> None:
    _, less = _stolen(case, _victim(), BUDGET // 2)
    few, many = (torch.cat(oracle.seen.images or [torch.zeros(0)]) for oracle in (less, case.kept["oracle"]))
    same = len(few) <= len(many) and torch.equal(few, many[: len(few)])
    require(same, f"with {BUDGET // 2} slots it asks about other images than first with {BUDGET}")


def leaves_the_victim_as_found(case: Case) -> None:
    victim = _victim()
    before = state_of(victim)
    _stolen(case, victim)
    require(state_of(victim) == before, "changed weights, modes, gradient flags or hooks of the victim")


def depends_on_the_answers(case: Case) -> None:
    other, _ = _stolen(case, _victim(turned=True))
    same = weights_hash(other.state_dict()) == weights_hash(case.kept["copy"].state_dict())
    if case.entry.access() != "none":
        require(not same, "the answers of another victim gave the same copy")
    elif case.entry.trains:
        require(same, "declares that it never asks, and its copy depends on the victim")


CLAUSES = (
    returns_a_copy_with_the_access_it_declares,
    asks_each_slot_once_at_most,
    says_how_many_images_of_the_pool_it_needs,
    makes_the_same_copy_for_the_same_draws,
    asks_the_same_images_first_with_a_smaller_budget,
    leaves_the_victim_as_found,
    depends_on_the_answers,
)
