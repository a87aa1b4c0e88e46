"""The certified track: proofs for single images, and attacks inside the certified radii."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from siegebench.artifacts import fingerprint
from siegebench.cells import Cell, Result, pack, rate
from siegebench.classifier import Classifier
from siegebench.draws import Draws, derive_seed
from siegebench.errors import ContractError
from siegebench.inputs import restored
from siegebench.inventory import Inventory, Named
from siegebench.prepare import in_batches, prepare
from siegebench.threat import ThreatModel
from siegebench.tracks.attacking import measure_attack
from siegebench.tracks.backdoor import poison_counts, refuse_without_trigger, with_trigger
from siegebench.tracks.base import Spec, Specs
from siegebench.tracks.conduct import conduct_flags
from siegebench.tracks.evasion import AttackBoard, takes
from siegebench.types import Attack, BackdoorAttack, Certificate, Certifier, Defense
from siegebench.types.certifiers import ABSTAINED, other_class
from siegebench.workspace import Workspace

# through the backward model, which is the model itself where the predictor is differentiable
ATTACKS: list[Spec] = [
    {"name": "bpda", "attack": {"name": "pgd", "loss": "margin", "steps": 50, "restarts": 2}},
    {"name": "bpda", "attack": {"name": "apgd", "loss": "ce", "steps": 50}},
]


class CertifiedBoard(AttackBoard):
    """Certified accuracy by radius, beside the accuracy under attack: model x defense x certifier x radius.

    Attributes:
        threats: norm and eps of the radii.
        attacks: run on what each certifier deploys, beside the attacks that it and the defense declare.
        backdoors: each network is trained on the poisoned set too, and certified on images with and without the
            trigger. No attack is run on such networks.
    """

    track: Literal["certified"]
    certifiers: Specs
    attacks: Specs = Field(default=ATTACKS)
    backdoors: list[Spec] = Field(default=[])
    slots: ClassVar[dict[str, str]] = {**AttackBoard.slots, "certifiers": "certifier", "backdoors": "backdoor"}

    def check(self, inventory: Inventory) -> None:
        super().check(inventory)
        norms = {threat.norm for threat in self.threats}
        for j, threat in enumerate(self.threats):
            if threat.target is not None:
                told = "a certificate holds for all classes: leave the target out"
                raise inventory.document.error((*self.where("threats"), j, "target"), told)
        for j, threat in enumerate(self.threats):
            with inventory.blame((*self.where("threats"), j, "eps")):
                threat.model("gradient", None)
        for certifier in self.named(inventory, "certifiers"):
            if not norms & certifier.entry.norms:
                able, wanted = ", ".join(sorted(certifier.entry.norms)), ", ".join(sorted(norms))
                told = f"certifier {certifier.name!r} certifies {able}; the threats are {wanted}"
                raise inventory.document.error(certifier.where, told)
        for backdoor in self.named(inventory, "backdoors"):
            refuse_without_trigger(self, inventory, backdoor)

    def cells(self, inventory: Inventory) -> Iterator[Cell]:
        data = self.images(inventory)
        balls = [spec.model("gradient", None) for spec in self.threats]
        own: list[Named[Attack]] = self.named(inventory, "attacks")
        defenses: list[Named[Defense]] = self.named(inventory, "defenses")
        certifiers: list[Named[Certifier]] = self.named(inventory, "certifiers")
        backdoors: list[Named[BackdoorAttack]] = self.named(inventory, "backdoors")
        for backdoor in backdoors:
            self.check_poison(inventory, backdoor)
        for model, defense, certifier in product(self.networks(inventory, data), defenses, certifiers):
            # those of a defense know nothing of a predictor around it
            specs = (*(() if certifier.entry.deploys else defense.entry.adaptive), *certifier.entry.adaptive)
            knowing = [inventory.resolve(Attack, spec, certifier.where) for spec in specs]
            knowing = [attack for attack in knowing if takes(attack, data.images.kind.name)]
            known = [attack.description for attack in knowing]
            attacks = [*own, *(a for a in knowing if a.description not in [o.description for o in own])]
            made = model.trained or defense.entry.trains
            for norm in sorted(certifier.entry.norms & {ball.norm for ball in balls}):
                mine = sorted((ball for ball in balls if ball.norm == norm), key=lambda ball: ball.eps)
                for training, seed in product(self.train_seeds if made else [0], self.seeds or ()):
                    common: dict[str, Any] = {
                        "track": self.track,
                        "model": model.under_defense(training),
                        "defense": inventory.identified(defense),
                        "seed": seed,
                    }
                    proved = inventory.identified(certifier)
                    yield Cell(
                        **common, data=self.used(inventory, data, made), threat=mine[-1].describe(), certifier=proved,
                        radii=[ball.eps for ball in mine],
                    )  # fmt: skip
                    for backdoor in backdoors:
                        yield Cell(
                            **common, data=self.used(inventory, data), threat=mine[-1].describe(), certifier=proved,
                            radii=[ball.eps for ball in mine], backdoor=inventory.identified(backdoor),
                        )  # fmt: skip
                    for attack, ball in product(attacks, mine):
                        if norm in attack.entry.handles() and ball.eps > 0:
                            used = self.used(inventory, data, made or attack.entry.learning())
                            yield Cell(
                                **common, data=used, threat=ball.describe(), attack=inventory.identified(attack),
                                adaptive=attack.description in known,
                                certifier=proved if certifier.entry.deploys else None,
                            )  # fmt: skip

    @staticmethod
    def measure(cell: Cell, ws: Workspace) -> Result:
        if cell.attack is not None:
            return _attacked(cell, ws)
        return _certified(cell, ws) if cell.backdoor is None else _poisoned(cell, ws)


def _certified(cell: Cell, ws: Workspace, model: Classifier | None = None) -> Result:
    """The row of the certificates of all images, also of those that are misclassified.

    Args:
        model: the network; that of the cell if left out.
    """
    data, model = ws.evaluated(cell.data), ws.network(cell) if model is None else model
    weights = fingerprint(model)
    found = _certificates(cell, ws, model, lambda at: ws.pixels(data, at))
    if fingerprint(model) != weights or any(m.training for m in model.modules()):
        raise ContractError(f"{cell.title}: the model was changed by the certifier")
    n, clean, abstained = len(data), found.prediction == data.labels, found.prediction == ABSTAINED
    right = found.holds & clean
    flags = [flag.as_dict() for flag in conduct_flags(ws, replace(cell, certifier=None), model, data)]
    return Result(
        cell=cell,
        metrics={
            "clean_acc": rate(int(clean.sum()), n),
            "certified_acc": rate(float(right.double().mean(dim=0).sum()), n),
            "abstained": rate(int(abstained.sum()), n),
            **{f"certified_acc@{k}": rate(int(one.sum()), n) for k, one in enumerate(right)},
        },
        samples={
            "n": n, "clean": pack(clean), "abstained": pack(abstained),
            **{f"certified@{k}": pack(one) for k, one in enumerate(right)},
        },
        flags=flags,
        weights=weights,
    )  # fmt: skip


def _certificates(cell: Cell, ws: Workspace, model: Classifier, pixels: Callable[[slice], Tensor]) -> Certificate:
    """The certificates of the evaluated images, or of changed ones."""
    assert cell.threat is not None
    data, certifier = ws.evaluated(cell.data), ws.entry(Certifier, cell.certifier)
    norm, radii = ThreatModel(**cell.threat).norm, cell.radii or []
    streams = Draws(derive_seed(cell.seed, "certify"), data.ids)

    def part(at: slice) -> tuple[Tensor, Tensor]:
        found = certifier(model, pixels(at), norm, radii, streams[at].to(ws.device))
        return found.prediction.cpu(), found.holds.cpu()

    parts = in_batches(part, len(data), ws.batch(data.stored))
    return Certificate(torch.cat([p for p, _ in parts]), torch.cat([h for _, h in parts], dim=1))


def _poisoned(cell: Cell, ws: Workspace) -> Result:
    """The row of a network that was trained on a poisoned set: as `_certified`, and with the trigger on every image.

    An image with the trigger is right if it gets its own label.
    """
    data, backdoor = ws.evaluated(cell.data), ws.entry(BackdoorAttack, cell.backdoor)
    of = replace(cell, seed=int(cell.model.get("train_seed", 0)))  # a row's seed is that of the certificates
    base, poisoned = ws.backdoored(of)
    assert poisoned is not None  # only a published network has none
    sample = ws.pixels(data, slice(0, 32))
    model = prepare(restored(ws.defended(of, base, poisoned), sample), sample)
    result = _certified(cell, ws, model)
    wanted, n = backdoor.wanted(data.labels, data.num_classes).clamp(min=0), len(data)
    x = with_trigger(backdoor, data, torch.arange(n), wanted, of.seed, poisoned.material)
    found = _certificates(cell, ws, model, lambda at: x[at].to(ws.device, ws.dtype))
    right, abstained = found.prediction == data.labels, found.prediction == ABSTAINED
    proved = found.holds & right
    result.metrics |= {
        "ra": rate(int(right.sum()), n),
        "certified_acc_triggered": rate(float(proved.double().mean(dim=0).sum()), n),
        "abstained_triggered": rate(int(abstained.sum()), n),
    }
    result.samples |= {
        "abstained_triggered": pack(abstained),
        **{f"certified_triggered@{k}": pack(one) for k, one in enumerate(proved)},
    }
    result.counts |= poison_counts(poisoned)
    return result


def _attacked(cell: Cell, ws: Workspace) -> Result:
    """The row of an attack on what is deployed, and the images that refute a certificate at its eps.

    Certifiers that deploy the model itself share the row; it names none of them.
    """
    model = ws.network(cell)

    @torch.no_grad()
    def refutes(x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        if cell.certifier is None:
            return other_class(model(x, draws if model.randomized else None), y)
        return ws.entry(Certifier, cell.certifier).refutes(model, x, y, draws)

    return measure_attack(cell, ws, refutes)
