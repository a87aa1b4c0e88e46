"""The backdoor track: clean accuracy, attack success and recovered accuracy of each attack under each defense."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from siegebench import ops
from siegebench.artifacts import fingerprint
from siegebench.cells import Cell, Result, rate
from siegebench.classifier import Classifier
from siegebench.data import ImageSet
from siegebench.draws import Draws, derive_seed
from siegebench.errors import ConfigError, NotApplicable
from siegebench.inventory import Inventory, Named, NamedData
from siegebench.prepare import in_batches
from siegebench.stats import der, fidelity
from siegebench.tracks.base import BoardSpec, Spec, Specs, Strict, refuse_repeats
from siegebench.tracks.judging import fresh_passes
from siegebench.types import BackdoorAttack, Material, ModelSource, Poisoned
from siegebench.workspace import Workspace

# limits of a successful attack; MAX_WITHOUT: success rate on a clean model as a fraction of the ASR
MIN_ASR, MAX_CLEAN_LOSS, MAX_WITHOUT = 0.5, 0.03, 0.5


class Published(Strict):
    """A network that was trained elsewhere.

    Attributes:
        model: with weights. A network with the parameters of one of `models` is shown beside its population.
        backdoor: its known trigger and target; None for a network that is assumed to be clean.
    """

    model: Spec
    backdoor: Spec | None = None


class PoisonedBoard(BoardSpec):
    """Base class of the boards that poison training sets.

    Attributes:
        backdoors: attacks on the training of each of `models`.
        published: networks that were trained elsewhere, with or without a backdoor.
    """

    models: list[Spec] | None = None
    backdoors: list[Spec] = Field(default=[])
    published: list[Published] = Field(default=[])

    def check(self, inventory: Inventory) -> None:
        super().check(inventory)
        if not (self.backdoors or self.published or getattr(self, "inputs", None)):
            other = "inputs" if "inputs" in type(self).model_fields else "published networks"
            raise inventory.document.error(self._where, f"this {self.track} board has no backdoors and no {other}")
        for backdoor in self.named(inventory, "backdoors"):
            refuse_without_trigger(self, inventory, backdoor)
        refuse_repeats(inventory, self.published, self.where("published"))
        for model, known in self.elsewhere(inventory):
            if not model.entry.pretrained():
                message = f"model {model.name!r} has no weights; give its `checkpoint: FILE`, or list it under `models`"
                raise inventory.document.error(model.where, message)
            if known is not None:
                refuse_without_trigger(self, inventory, known)
                if known.entry.learning():
                    message = f"backdoor {known.name!r} makes its trigger with a network: that of others is not known"
                    raise inventory.document.error(known.where, f"{message}; give it as a `picture`")

    def knowing(self, inventory: Inventory, named: Named[Any]) -> list[dict[str, Any]]:
        """The descriptions of the backdoor attacks that are designed against a defense or detector.

        The user did not name them: one that the training set does not allow (two classes, rare sources) is left out.
        """
        found = [inventory.resolve(BackdoorAttack, spec, named.where) for spec in named.entry.poisons]
        known = [backdoor for backdoor in found if not self.models or self.allows(inventory, backdoor)]
        return [inventory.identified(backdoor) for backdoor in known]

    def allows(self, inventory: Inventory, backdoor: Named[Any]) -> bool:
        """Whether the training set allows a poison."""
        try:
            self.check_poison(inventory, backdoor)
        except ConfigError:
            return False
        return True

    def elsewhere(self, inventory: Inventory) -> list[tuple[Named[ModelSource], Named[BackdoorAttack] | None]]:
        """The published networks and their backdoors."""
        return [
            (
                inventory.resolve(ModelSource, spec.model, self.where("published", i, "model")),
                None if spec.backdoor is None
                else inventory.resolve(BackdoorAttack, spec.backdoor, self.where("published", i, "backdoor")),
            )
            for i, spec in enumerate(self.published)
        ]  # fmt: skip

    def infected(self, inventory: Inventory, data: NamedData) -> list[tuple[dict[str, Any], dict[str, Any] | None]]:
        """The descriptions of the published networks and of their backdoors."""
        return [
            (
                {**inventory.network(model, data).description, "published": True},
                None if backdoor is None else inventory.identified(backdoor),
            )
            for model, backdoor in self.elsewhere(inventory)
        ]

    def check_poisons(self, inventory: Inventory) -> None:
        """Refuse backdoors that the training set does not allow, before anything is trained."""
        for backdoor in self.named(inventory, "backdoors"):
            self.check_poison(inventory, backdoor)


def refuse_without_trigger(board: BoardSpec, inventory: Inventory, backdoor: Named[Any]) -> None:
    """Refuse a poison without a trigger."""
    if not isinstance(backdoor.entry, BackdoorAttack):
        message = f"backdoor {backdoor.name!r} has no trigger; it is not for the {board.track} track"
        raise inventory.document.error(backdoor.where, message)
    if not backdoor.entry.aims and board.track != "certified":
        message = (
            f"backdoor {backdoor.name!r} aims at no class; list it under `backdoors` of a board of the certified track"
        )
        raise inventory.document.error(backdoor.where, message)


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
                            backdoor=inventory.identified(backdoor), defense=inventory.identified(defense), seed=seed,
                        )  # fmt: skip
                for defense in self.named(inventory, "defenses"):
                    for described in self.knowing(inventory, defense):
                        yield Cell(
                            track=self.track, data=self.used(inventory, data), model=model.seeded(seed), seed=seed,
                            backdoor=described, defense=inventory.identified(defense), adaptive=True,
                        )  # fmt: skip
        for described, known in self.infected(inventory, data):
            for seed in self.seeds or ():
                for defense in self.named(inventory, "defenses") if known is not None else ():
                    yield Cell(
                        track=self.track, data=self.used(inventory, data), model=described, backdoor=known,
                        defense=inventory.identified(defense), seed=seed,
                    )  # fmt: skip

    @staticmethod
    def measure(cell: Cell, ws: Workspace) -> Result:
        return measure_backdoor(cell, ws)


Metrics = dict[str, dict[str, float]]  # metrics of a row


def answers(ws: Workspace, model: Classifier, x: Tensor, seed: int, purpose: str) -> Tensor:
    """Predicted labels [n] on the CPU; the most frequent of nine for a randomised model."""
    draws = Draws(derive_seed(seed, "answers"), torch.arange(len(x)))

    def part(at: slice) -> Tensor:
        z = fresh_passes(model, x[at].to(ws.device, ops.precision(x, ws.dtype)), draws[at].to(ws.device), purpose)
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
    return with_trigger(backdoor, data, rows, wanted[rows], seed, material), data.labels[rows], wanted[rows]


def with_trigger(
    backdoor: BackdoorAttack, data: ImageSet, rows: Tensor, wanted: Tensor, seed: int, material: Material | None
) -> Tensor:
    """Test images `rows` with the trigger for the labels `wanted`, quantised."""
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
        away = with_trigger(backdoor, data, others, targets[:1].expand(len(others)), seed, material)
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


def rejection_metrics(
    ws: Workspace,
    model: Classifier,
    backdoor: BackdoorAttack,
    data: ImageSet,
    seed: int,
    material: Material | None = None,
) -> Metrics:
    """Metrics of a model that may reject images: rates of rejected, and of rejected or correct images."""

    def rejected(x: Tensor) -> Tensor:
        parts = in_batches(
            lambda at: model.rejects(x[at].to(ws.device, ops.precision(x, ws.dtype))).cpu(), len(x), ws.batch(x)
        )
        return torch.cat(parts)

    x, y, _ = triggered(backdoor, data, seed, material)
    refused, correct = rejected(data.pixels()), answers(ws, model, data.pixels(), seed, "clean") == data.labels
    refused_bd, correct_bd = rejected(x), answers(ws, model, x, seed, "stamped") == y
    return {
        "c_rej": rate(int(refused.sum()), len(data)),
        "psr": rate(int((correct & ~refused).sum()), len(data)),
        "b_rej": rate(int(refused_bd.sum()), len(x)),
        "dsr": rate(int((correct_bd | refused_bd).sum()), len(x)),
    }


def succeeded(undefended: Metrics, clean_model: Metrics | None) -> bool:
    """Whether the attack succeeded: high ASR, small loss of clean accuracy, low success on a clean model.

    Without a clean model, the success without the trigger is that of the same model on clean images, and the loss is
    not judged.
    """
    asr, without = undefended["asr"]["value"], undefended["clean_rate"]["value"]
    natural = without if clean_model is None else clean_model["asr"]["value"]
    learnt = asr >= MIN_ASR and natural <= MAX_WITHOUT * asr
    if clean_model is None:
        return learnt
    return learnt and clean_model["ca"]["value"] - undefended["ca"]["value"] <= MAX_CLEAN_LOSS


def of_twin(
    cell: Cell, ws: Workspace, backdoor: BackdoorAttack, data: ImageSet, material: Material | None = None
) -> Metrics | None:
    """The metrics of the same recipe and seed on clean data; None for a published network, which has no such twin."""
    if cell.model.get("published"):
        return None
    return backdoor_metrics(ws, ws.model(cell), backdoor, data, cell.seed, material)


def poison_counts(poisoned: Poisoned | None) -> dict[str, float]:
    """What a row says about a poisoned training set."""
    if poisoned is None:  # that of a published network
        return {}
    covers = {"covers": len(poisoned.cover)} if len(poisoned.cover) else {}
    return {"poisoned": len(poisoned.index), **covers, "train": len(poisoned.data)}


def measure_backdoor(cell: Cell, ws: Workspace) -> Result:
    """One row of the backdoor track: a defense against a backdoor attack."""
    data, backdoor = ws.evaluated(cell.data), ws.entry(BackdoorAttack, cell.backdoor)
    base, poisoned = ws.backdoored(cell)
    defended = ws.defended(cell, base, poisoned)

    material = None if poisoned is None else poisoned.material

    def measured(model: Classifier) -> Metrics:
        return backdoor_metrics(ws, model, backdoor, data, cell.seed, material)

    before = measured(base)
    metrics = before if defended is base else measured(defended)
    without = of_twin(cell, ws, backdoor, data, material)  # for the loss of clean accuracy through the attack
    asr_bd, ca_bd = before["asr"]["value"], before["ca"]["value"]
    asr, ca = metrics["asr"]["value"], metrics["ca"]["value"]
    rir = (max(0.0, metrics["ra"]["value"] - before["ra"]["value"]) - max(0.0, ca_bd - ca) + 1) / 2
    natural: Metrics = {}
    if without is not None:
        natural = {"ca_clean_model": {"value": without["ca"]["value"]}, "asr_clean_model": without["asr"]}
    metrics = {
        **metrics,
        **natural,
        "ca_undefended": before["ca"],
        "asr_undefended": before["asr"],
        "ra_undefended": before["ra"],
        "fidelity": {"value": fidelity(asr_bd, asr, ca_bd, ca)},
        "der": {"value": der(asr_bd, asr, ca_bd, ca)},
        "rir": {"value": rir},
        "attack_success": {"value": float(succeeded(before, without))},
    }
    if defended.rejecting:
        metrics |= rejection_metrics(ws, defended, backdoor, data, cell.seed, material)
    return Result(
        cell=cell,
        metrics=metrics,
        counts=poison_counts(poisoned),
        weights=fingerprint(defended),
    )
