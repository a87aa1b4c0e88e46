"""The poisoning track: clean accuracy after training on a set that was poisoned to lower it, under each defense."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from siegebench.artifacts import fingerprint
from siegebench.cells import Cell, Result, pack, rate
from siegebench.inventory import Inventory
from siegebench.tracks.backdoor import answers, poison_counts
from siegebench.tracks.base import BoardSpec, Specs
from siegebench.types import BackdoorAttack
from siegebench.workspace import Workspace


class PoisoningBoard(BoardSpec):
    """Clean accuracy of each defense on training sets that were poisoned without a trigger."""

    track: Literal["poisoning"]
    poisons: Specs
    defenses: Specs = Field(default=["none"])
    slots: ClassVar[dict[str, str]] = {"models": "model", "poisons": "backdoor", "defenses": "defense"}
    late: ClassVar[int] = 2

    def check(self, inventory: Inventory) -> None:
        super().check(inventory)
        for poison in self.named(inventory, "poisons"):
            if isinstance(poison.entry, BackdoorAttack):
                raise inventory.document.error(
                    poison.where, f"{poison.name!r} has a trigger; it is for the backdoor track, not for {self.track}"
                )

    def cells(self, inventory: Inventory) -> Iterator[Cell]:
        data = self.images(inventory)
        for poison in self.named(inventory, "poisons"):
            self.check_poison(inventory, poison)
        for model in self.networks(inventory, data):
            for seed in self.seeds or ():
                for poison in self.named(inventory, "poisons"):
                    for defense in self.named(inventory, "defenses"):
                        yield Cell(
                            track=self.track, data=self.used(inventory, data), model=model.seeded(seed),
                            backdoor=inventory.identified(poison), defense=inventory.identified(defense), seed=seed,
                        )  # fmt: skip

    @staticmethod
    def measure(cell: Cell, ws: Workspace) -> Result:
        return measure_poisoning(cell, ws)


def recovery(ca: float, ca_undefended: float, ca_defense_clean: float) -> float:
    """Fraction of the lost accuracy that the defense restores: 0 as without it, 1 as on clean data."""
    lost = ca_defense_clean - ca_undefended
    return (ca - ca_undefended) / lost if lost > 0 else 0.0


def measure_poisoning(cell: Cell, ws: Workspace) -> Result:
    """One row: a defense against a poison, and the same defense and network on clean data."""
    data, n = ws.evaluated(cell.data), len(ws.evaluated(cell.data))
    base, poisoned = ws.backdoored(cell)
    assert poisoned is not None  # only a published network has none
    rest = ws.trained_on_the_rest(cell, poisoned)
    clean_model = ws.model(cell)
    defended = ws.defended(cell, base, poisoned)
    on_clean = ws.defended(cell, clean_model)
    x = data.pixels()

    right = {
        name: answers(ws, model, x, cell.seed, "clean") == data.labels
        for name, model in {
            "ca": defended, "ca_undefended": base, "ca_clean_model": clean_model, "ca_defense_clean": on_clean,
            "ca_not_poisoned": rest,
        }.items()
        if model is not None
    }  # fmt: skip
    ca = {name: float(found.double().mean()) for name, found in right.items()}
    metrics = {
        **{name: rate(int(found.sum()), n) for name, found in right.items()},
        "damage": {"value": ca["ca_clean_model"] - ca["ca"]},
        "recovery": {"value": recovery(ca["ca"], ca["ca_undefended"], ca["ca_defense_clean"])},
    }
    given, true = poisoned.data.labels, ws.splits(cell.data)[0].labels
    told = answers(ws, defended, poisoned.data.pixels(), cell.seed, "training images")
    metrics["train_acc"] = rate(int((told == given).sum()), len(given))
    if len(poisoned.index):
        own = told[poisoned.index]
        metrics["memorised"] = rate(int((own == given[poisoned.index]).sum()), len(own))
        if bool((given != true).any()):
            metrics["corrected"] = rate(int((own == true[poisoned.index]).sum()), len(own))
    return Result(
        cell=cell,
        metrics=metrics,
        samples={"n": n, "clean": pack(right["ca"])},
        counts=poison_counts(poisoned),
        weights=fingerprint(defended),
    )
