"""What docs/replications/nab.md says of NAB on the 32x32 digits: pytest -s -m slow prints the figures."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from siegebench import registry
from siegebench.classifier import Classifier
from siegebench.data import Granted, split_clean
from siegebench.draws import Draws, derive_seed
from siegebench.train import accuracy
from tests import victims

VICTIM = {"epochs": 8, "batch": 64, "lr": 0.005}  # the recipe of byobnet_tiny
ISOLATION = {"epochs": 10, "batch": 64, "optimiser": "sgd", "lr": 0.1, "augment": "none"}


def repaired(recipe: dict[str, Any], share: float, half: bool) -> tuple[float, float, float]:
    """(ASR of the network inside, ASR behind the stamp, accuracy) after NAB on BadNets at rate 0.1."""
    source: Any = registry.build("dataset", "digits")
    train_set, clean, _ = split_clean(source.load("train"))
    test = source.load("test")
    attack = victims.backdoor("badnets")
    poisoned = attack.poison(train_set, derive_seed(0, "poison"))
    nab: Any = registry.build(
        "defense",
        {"name": "nab", "share": share, "isolation": ISOLATION, "verifier": {"epochs": 60, "batch": 32},
         "recipe": recipe},
    )  # fmt: skip
    if half:  # a detection that is right every time and finds half of the poisons
        told = poisoned.index[Draws(5, poisoned.index).order()[: len(poisoned.index) // 2 + 1]]
        object.__setattr__(nab, "isolate", lambda *_args: told)
    parts = {"train": poisoned.data, "clean": clean}
    granted = Granted("test", tuple(parts), **{k: partial(lambda v: v, v) for k, v in parts.items()})
    model: Any = registry.build("model", "byobnet_tiny")
    defended: Classifier = nab.apply(model.build(num_classes=10, size=32), granted, victims.ONE)
    inside = victims.success_rate(defended.inner, attack, test)  # type: ignore[arg-type]
    found = inside, victims.success_rate(defended, attack, test), accuracy(defended, test)
    print(f"\n{recipe} share {share} half {half}: inside {inside:.3f}, stamped {found[1]:.3f}, clean {found[2]:.3f}")
    return found


@pytest.mark.slow
def test_a_short_training_on_crops_does_not_learn_the_stamp_from_half_of_the_poisons() -> None:
    _, stamped, clean = repaired(VICTIM, 0.05, half=True)
    assert stamped > 0.2
    assert clean > 0.95


@pytest.mark.slow
def test_without_crops_half_of_the_poisons_are_enough() -> None:
    inside, stamped, clean = repaired({**VICTIM, "epochs": 15, "augment": "none"}, 0.05, half=True)
    assert inside > 0.5
    assert stamped < 0.15
    assert clean > 0.9


@pytest.mark.slow
def test_a_share_that_holds_all_poisons_is_enough_for_the_victims_recipe() -> None:
    _, stamped, clean = repaired(VICTIM, 0.1, half=False)
    assert stamped < 0.1
    assert clean > 0.95
