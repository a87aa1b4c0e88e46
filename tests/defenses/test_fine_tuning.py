"""Fine-tuning: what is left of a backdoor after it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from siegebench import registry
from siegebench.classifier import Network
from siegebench.data import Granted
from siegebench.draws import Draws
from siegebench.train import accuracy
from siegebench.types import Poisoned
from tests import victims


def defense(name: str, **parameters: Any) -> Any:
    return registry.build("defense", {"name": name, **parameters})


def test_fine_tuning_removes_a_patch() -> None:
    model, poisoned = victims.victim("badnets")  # frozen, as the harness hands it over
    sets, attack = victims.digits(), victims.backdoor("badnets")
    assert victims.success_rate(model, attack, sets[3]) > 0.9
    # it is granted the clean budget alone, never the poisoned set
    repaired = defense("fine_tuning").apply(model, victims.granted(poisoned, sets, "clean"), victims.ONE)
    assert victims.success_rate(repaired, attack, sets[3]) < 0.1
    assert accuracy(repaired, sets[3]) > 0.85
    assert victims.success_rate(model, attack, sets[3]) > 0.9  # the given model is as it was


def test_fine_tuning_too_gently_leaves_the_patch() -> None:
    model, poisoned = victims.victim("badnets")
    sets, attack = victims.digits(), victims.backdoor("badnets")
    gentle = defense("fine_tuning", lr=1e-4, epochs=5)
    repaired = gentle.apply(model, victims.granted(poisoned, sets, "clean"), victims.ONE)
    assert victims.success_rate(repaired, attack, sets[3]) > 0.8


def test_fine_tuning_depends_on_its_seed_alone() -> None:
    sets, model = victims.tiny_digits(), victims.tiny_net()

    def weights(seed: int, elsewhere: int) -> Tensor:
        draws = Draws(seed, torch.zeros(1, dtype=torch.long))
        torch.manual_seed(elsewhere)  # the global generator must not matter
        tuned = defense("fine_tuning", epochs=2).apply(model, victims.granted(None, sets, "clean"), draws)
        return torch.cat([p.detach().flatten() for p in tuned.parameters()])

    assert torch.equal(weights(0, 1), weights(0, 2))
    assert not torch.equal(weights(0, 1), weights(1, 1))


def repaired(told: Any, model: Network, poisoned: Poisoned, sets: Any) -> Any:
    granted: Granted = victims.granted(poisoned, sets, "train", "clean")
    return told.apply(model, granted, victims.ONE)
