"""The certified track: proofs for single images, and attacks inside the radii that they hold for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from siegebench.artifacts import fingerprint
from siegebench.cells import Cell, Result, pack, rate
from siegebench.draws import Draws, derive_seed
from siegebench.errors import ContractError
from siegebench.inventory import Inventory, Named
from siegebench.prepare import in_batches
from siegebench.threat import ThreatModel
from siegebench.tracks.attacking import measure_attack
from siegebench.tracks.base import Spec, Specs
from siegebench.tracks.conduct import conduct_flags
from siegebench.tracks.evasion import AttackBoard, takes
from siegebench.types import Attack, Certifier, Defense
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
    """

    track: Literal["certified"]
    certifiers: Specs
    attacks: Specs = Field(default=ATTACKS)
    slots: ClassVar[dict[str, str]] = {**AttackBoard.slots, "certifiers": "certifier"}

    def check(self, inventory: Inventory) -> None:
        super().check(inventory)
        norms = {threat.norm for threat in self.threats}
        for j, threat in enumerate(self.threats):
            if threat.target is not None:
                told = "a certificate holds for all classes: leave the target out"
                raise inventory.document.error((*self.where("threats"), j, "target"), told)
        for certifier in self.named(inventory, "certifiers"):
            if not norms & certifier.entry.norms:
                able, wanted = ", ".join(sorted(certifier.entry.norms)), ", ".join(sorted(norms))
                told = f"certifier {certifier.name!r} certifies {able}; the threats are {wanted}"
                raise inventory.document.error(certifier.where, told)

    def cells(self, inventory: Inventory) -> Iterator[Cell]:
        data = self.images(inventory)
        balls = [spec.model("gradient", None) for spec in self.threats]
        own: list[Named[Attack]] = self.named(inventory, "attacks")
        defenses: list[Named[Defense]] = self.named(inventory, "defenses")
        certifiers: list[Named[Certifier]] = self.named(inventory, "certifiers")
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
                        "model": model.seeded(training) if training or model.trained else model.description,
                        "defense": inventory.identified(defense),
                        "seed": seed,
                    }
                    proved = inventory.identified(certifier)
                    yield Cell(
                        **common, data=self.used(inventory, data, made), threat=mine[-1].describe(), certifier=proved,
                        radii=[ball.eps for ball in mine],
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
        return _certified(cell, ws) if cell.attack is None else _attacked(cell, ws)


def _certified(cell: Cell, ws: Workspace) -> Result:
    """The row of the certificates of all images, also of those that are misclassified."""
    assert cell.threat is not None
    data, model, certifier = ws.evaluated(cell.data), ws.network(cell), ws.entry(Certifier, cell.certifier)
    norm, radii, weights = ThreatModel(**cell.threat).norm, cell.radii or [], fingerprint(model)
    streams = Draws(derive_seed(cell.seed, "certify"), data.ids)

    def part(at: slice) -> tuple[Tensor, Tensor]:
        found = certifier(model, ws.pixels(data, at), norm, radii, streams[at].to(ws.device))
        return found.prediction.cpu(), found.holds.cpu()

    parts = in_batches(part, len(data), ws.batch(data.stored))
    prediction, holds = torch.cat([p for p, _ in parts]), torch.cat([h for _, h in parts], dim=1)
    if fingerprint(model) != weights or any(m.training for m in model.modules()):
        raise ContractError(f"{cell.title}: the model was changed by the certifier")
    n, clean, abstained = len(data), prediction == data.labels, prediction == ABSTAINED
    right = holds & clean
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
