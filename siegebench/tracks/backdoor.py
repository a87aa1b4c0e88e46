"""The backdoor track: clean accuracy, attack success and recovered accuracy of each attack under each defense."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from siegebench.artifacts import fingerprint
from siegebench.cells import Cell, Result, rate
from siegebench.classifier import Classifier
from siegebench.data import ImageSet
from siegebench.draws import Draws, derive_seed
from siegebench.errors import NotApplicable
from siegebench.inventory import Inventory
from siegebench.prepare import in_batches
from siegebench.tracks.base import BoardSpec, Specs
from siegebench.tracks.judging import fresh_passes
from siegebench.types import BackdoorAttack, Material, Poisoned
from siegebench.workspace import Workspace

# limits of a successful attack; MAX_WITHOUT: success rate on a clean model as a fraction of the ASR
MIN_ASR, MAX_CLEAN_LOSS, MAX_WITHOUT = 0.5, 0.03, 0.5


class PoisonedBoard(BoardSpec):
    """Base class of the boards that poison training sets."""

    backdoors: Specs

    def check(self, inventory: Inventory) -> None:
        super().check(inventory)
        for backdoor in self.named(inventory, "backdoors"):
            if not isinstance(backdoor.entry, BackdoorAttack):
                raise inventory.document.error(
                    backdoor.where, f"backdoor {backdoor.name!r} has no trigger; it is not for the {self.track} track"
                )

    def check_poisons(self, inventory: Inventory) -> None:
        """Refuse backdoors that the training set does not allow, before anything is trained."""
        source = self.source(inventory)
        for backdoor in self.named(inventory, "backdoors"):
            inventory.check_poison(backdoor, source, self.where("data", "set"))


class BackdoorBoard(PoisonedBoard):
    """Clean accuracy, attack success and recovered accuracy of each backdoor attack under each defense."""

    track: Literal["backdoor"]
    defenses: Specs = Field(default=["none"])
    slots: ClassVar[dict[str, str]] = {"models": "model", "backdoors": "backdoor", "defenses": "defense"}
    late: ClassVar[int] = 2

    def cells(self, inventory: Inventory) -> Iterator[Cell]:
        data = self.images(inventory)
        self.check_poisons(inventory)
        for model in self.networks(inventory, data):
            for seed in self.seeds or ():
                for backdoor in self.named(inventory, "backdoors"):
                    for defense in self.named(inventory, "defenses"):
                        yield Cell(
                            track=self.track, data=self.used(inventory, data), model=model.seeded(seed),
                            backdoor=backdoor.description, defense=inventory.identified(defense), seed=seed,
                        )  # fmt: skip

    @staticmethod
    def measure(cell: Cell, ws: Workspace) -> Result:
        return measure_backdoor(cell, ws)


Metrics = dict[str, dict[str, float]]  # metrics of a row


def answers(ws: Workspace, model: Classifier, x: Tensor, seed: int, purpose: str) -> Tensor:
    """Predicted labels [n] on the CPU; the most frequent of nine for a randomised model."""
    draws = Draws(derive_seed(seed, "answers"), torch.arange(len(x)))

    def part(at: slice) -> Tensor:
        z = fresh_passes(model, x[at].to(ws.device, ws.dtype), draws[at].to(ws.device), purpose)
        return z.argmax(dim=2).mode(dim=0).values.cpu()

    return torch.cat(in_batches(part, len(x), ws.batch(x)))


def triggered(
    backdoor: BackdoorAttack, data: ImageSet, seed: int, material: Material | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(stamped and quantised images, true labels, wanted labels), where the wanted label differs from the true one.

    Args:
        material: `Poisoned.material`, for attacks that learn.

    Raises:
        NotApplicable: when there is no such image.
    """
    wanted = backdoor.wanted(data.labels, data.num_classes)
    rows = ((wanted >= 0) & (wanted != data.labels)).nonzero().squeeze(1)
    if not len(rows):
        raise NotApplicable(
            f"{type(backdoor).__name__}: none of the {len(data)} test images has a class that the trigger is meant to "
            "change; give test images of other classes than the target"
        )
    return _stamped(backdoor, data, rows, wanted[rows], seed, material), data.labels[rows], wanted[rows]


def _stamped(
    backdoor: BackdoorAttack, data: ImageSet, rows: Tensor, wanted: Tensor, seed: int, material: Material | None
) -> Tensor:
    draws = Draws(derive_seed(seed, "trigger"), data.ids[rows])
    x = backdoor.stamp(data.pixels(rows), draws, data.kind, wanted=wanted, material=material)
    return data.kind.load(data.kind.store(x), x.dtype)


def backdoor_metrics(
    ws: Workspace,
    model: Classifier,
    backdoor: BackdoorAttack,
    data: ImageSet,
    seed: int,
    material: Material | None = None,
) -> Metrics:
    """CA over all images; ASR, RA and clean rate over images whose wanted label differs from the true one.

    With a label map that leaves out classes, also how often the trigger gives those one of its targets.
    """
    x, y, wanted = triggered(backdoor, data, seed, material)
    clean = answers(ws, model, data.pixels(), seed, "clean")
    stamped = answers(ws, model, x, seed, "stamped")
    target = backdoor.wanted(data.labels, data.num_classes)
    attacked = (target >= 0) & (target != data.labels)
    without = clean[attacked]
    n = len(y)
    targets = target[target >= 0].unique()
    others = ((target < 0) & ~torch.isin(data.labels, targets)).nonzero().squeeze(1)
    beyond: Metrics = {}
    if len(others):
        away = _stamped(backdoor, data, others, targets[:1].expand(len(others)), seed, material)
        hits = torch.isin(answers(ws, model, away, seed, "others"), targets)
        beyond["asr_others"] = rate(int(hits.sum()), len(others))
    return {
        "ca": rate(int((clean == data.labels).sum()), len(data)),
        "asr": rate(int((stamped == wanted).sum()), n),
        "ra": rate(int((stamped == y).sum()), n),
        "clean_rate": rate(int((without == wanted).sum()), n),
        "lift": {"value": float((stamped == wanted).double().mean() - (without == wanted).double().mean())},
        **beyond,
    }


def fidelity(asr_bd: float, asr: float, ca_bd: float, ca: float) -> float:
    """Signed fidelity in [-1, 1]: fraction of the ASR removed times fraction of the clean accuracy kept."""
    gone = min(1.0, max(-1.0, (asr_bd - asr) / asr_bd)) if asr_bd > 0 else 0.0
    return gone * min(1.0, max(0.0, ca / ca_bd)) if ca_bd > 0 else 0.0


def der(asr_bd: float, asr: float, ca_bd: float, ca: float) -> float:
    """Defense effectiveness rating, for comparison only: a model at chance level scores above 0.5."""
    return (max(0.0, asr_bd - asr) - max(0.0, ca_bd - ca) + 1) / 2


def succeeded(undefended: Metrics, clean_model: Metrics) -> bool:
    """Whether the attack succeeded: high ASR, small loss of clean accuracy, low success on a clean model."""
    asr, natural = undefended["asr"]["value"], clean_model["asr"]["value"]
    learnt = asr >= MIN_ASR and natural <= MAX_WITHOUT * asr
    return learnt and clean_model["ca"]["value"] - undefended["ca"]["value"] <= MAX_CLEAN_LOSS


def poison_counts(poisoned: Poisoned) -> dict[str, float]:
    """What a row says about a poisoned training set."""
    covers = {"covers": len(poisoned.cover)} if len(poisoned.cover) else {}
    return {"poisoned": len(poisoned.index), **covers, "train": len(poisoned.data)}


def measure_backdoor(cell: Cell, ws: Workspace) -> Result:
    """One row of the backdoor track: a defense against a backdoor attack."""
    data, backdoor = ws.evaluated(cell.data), ws.entry(BackdoorAttack, cell.backdoor)
    base, poisoned = ws.backdoored(cell)
    clean_model = ws.model(cell)  # same recipe and seed, clean data: to measure the attack's loss of clean accuracy
    defended = ws.defended(cell, base, poisoned)

    def measured(model: Classifier) -> Metrics:
        return backdoor_metrics(ws, model, backdoor, data, cell.seed, poisoned.material)

    before = measured(base)
    metrics = before if defended is base else measured(defended)
    without = measured(clean_model)
    asr_bd, ca_bd = before["asr"]["value"], before["ca"]["value"]
    asr, ca = metrics["asr"]["value"], metrics["ca"]["value"]
    rir = (max(0.0, metrics["ra"]["value"] - before["ra"]["value"]) - max(0.0, ca_bd - ca) + 1) / 2
    metrics = {
        **metrics,
        "ca_clean_model": {"value": without["ca"]["value"]},
        "asr_clean_model": without["asr"],
        "ca_undefended": before["ca"],
        "asr_undefended": before["asr"],
        "ra_undefended": before["ra"],
        "fidelity": {"value": fidelity(asr_bd, asr, ca_bd, ca)},
        "der": {"value": der(asr_bd, asr, ca_bd, ca)},
        "rir": {"value": rir},
        "attack_success": {"value": float(succeeded(before, without))},
    }
    return Result(
        cell=cell,
        metrics=metrics,
        counts=poison_counts(poisoned),
        weights=fingerprint(defended),
    )
