"""Attacks of other libraries repeat: no generator that they make escapes the seed of the cell."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.random import RandomState, default_rng
from siegebench.attacks._foreign import Foreign, contained
from siegebench.attacks.art import ART
from siegebench.attacks.art import KNOWN as OF_ART
from siegebench.attacks.torchattacks import KNOWN as OF_TORCHATTACKS
from siegebench.attacks.torchattacks import Torchattacks

from siegebench.classifier import Classifier
from siegebench.registry import build
from siegebench.threat import ThreatModel
from tests import kit

pytest.importorskip("torchattacks")
pytest.importorskip("art")

CPU = torch.device("cpu")
EPS = {"linf": 0.05, "l2": 1.0, "l1": 10.0}
FEW = {  # what many classes call their numbers of steps
    "steps": 2, "max_iter": 2, "iterations": 2, "n_queries": 20, "nb_iter": 2, "N": 2, "binary_search_steps": 1,
    "num_random_init": 1, "nb_random_init": 1, "max_eval": 20, "init_eval": 10, "init_size": 10, "num_trial": 3,
    "sample_size": 4, "query_limit": 30, "popsize": 4, "inf_batch": 10, "nb_parallel": 4,
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    "Pixle": {"restarts": 2, "max_iterations": 2},
    "EADL1": {"max_iterations": 20, "binary_search_steps": 1},
    "EADEN": {"max_iterations": 20, "binary_search_steps": 1},
    "CarliniLInfMethod": {"max_iter": 2, "initial_const": 1.0, "largest_const": 1.5},
    "SignOPTAttack": {"max_iter": 1, "num_trial": 2, "k": 2, "query_limit": 20},
    "PixelAttack": {"max_iter": 1, "th": 2, "es": 1},
}
DRAWS: tuple[Callable[[], float], ...] = (
    lambda: float(np.random.rand()),
    lambda: float(np.random.RandomState().rand()),
    lambda: float(RandomState().rand()),  # imported before
    lambda: float(np.random.default_rng().random()),
    lambda: float(default_rng().random()),
    lambda: float(np.random.Generator(np.random.PCG64()).random()),
    lambda: (np.random.seed(), float(np.random.rand()))[1],
    random.random,
    lambda: random.Random().random(),
    lambda: (random.seed(), random.random())[1],
    lambda: float(torch.rand(())),
    lambda: (torch.seed(), float(torch.rand(())))[1],
)


def test_every_generator_starts_from_the_seed() -> None:
    def drawn(seed: int) -> list[float]:
        with contained(seed, CPU):
            return [draw() for draw in DRAWS]

    first = drawn(3)
    assert drawn(3) == first
    assert not set(first) & set(drawn(4))
    with contained(3, CPU):
        assert RandomState().rand() != RandomState().rand()
        assert RandomState(5).rand() == RandomState(5).rand() == np.random.RandomState(5).rand()
        assert random.Random(5).random() == random.Random(5).random()


def test_a_module_that_is_imported_meanwhile_takes_no_numbers_from_others() -> None:
    with contained(3, CPU):
        first = RandomState().rand()
    with contained(3, CPU):
        exec("import random; random.Random()", {"__name__": "imported"})
        assert RandomState().rand() == first


def test_afterwards_generators_differ_again() -> None:
    with pytest.raises(KeyError), contained(3, CPU):
        raise KeyError
    for draw in (lambda: RandomState().rand(), lambda: default_rng().random(), lambda: random.Random().random()):
        assert draw() != draw()


@pytest.mark.parametrize("target", [*OF_TORCHATTACKS, *OF_ART])
def test_every_known_attack_repeats_with_its_seed(linear: Classifier, target: str) -> None:
    cls: type[Foreign] = Torchattacks if target in OF_TORCHATTACKS else ART
    accepted = cls(target=target).accepted()
    options = OWN.get(target) or {name: value for name, value in FEW.items() if name in accepted}
    attack = cls(target=target, options=options)
    norm = attack.handles()[-1]
    x = kit.grey_images(1)
    y = linear(x).argmax(1)
    threat = ThreatModel(norm=norm, eps=EPS[norm])
    first, again = (kit.attack_with(attack, linear, x, y, threat)[0] for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize(
    "name", ["art/HopSkipJump", "art/BoundaryAttack", "torchattacks/PGD", "torchattacks/GN", "art/SimBA"]
)
def test_another_seed_gives_other_images(linear: Classifier, name: str) -> None:
    accepted = build(Foreign, name).accepted()
    attack = build(Foreign, {"name": name, **{k: v for k, v in FEW.items() if k in accepted}})
    norm = attack.handles()[-1]
    x = kit.grey_images(1)
    y = linear(x).argmax(1)
    threat = ThreatModel(norm=norm, eps=EPS[norm])
    zero, one = (kit.attack_with(attack, linear, x, y, threat, seed)[0] for seed in (0, 1))
    assert not torch.equal(zero, one)


def test_rows_that_could_not_be_repeated_are_not_taken_for_new_ones() -> None:
    for name, changed in (("art/HopSkipJump", True), ("art/BoundaryAttack", True), ("art/SquareAttack", False)):
        assert bool(build(Foreign, name).identity()) is changed
