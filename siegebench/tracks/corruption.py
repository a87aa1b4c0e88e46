"""The corruption track: accuracy on images corrupted by weather, sensors and codecs, without an attacker."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from siegebench.artifacts import fingerprint
from siegebench.cells import Cell, Result, pack, rate
from siegebench.draws import Draws, derive_seed
from siegebench.inventory import Inventory, Named
from siegebench.metrics import SEVERITIES
from siegebench.prepare import in_batches
from siegebench.tracks.base import BoardSpec, Seeds, Severity, Spec, Specs, refuse_repeats
from siegebench.tracks.conduct import conduct_flags
from siegebench.tracks.conventions import convention_flags
from siegebench.tracks.judging import clean_outcome, fresh_passes, majority, right
from siegebench.types import Corruption, Defense
from siegebench.workspace import Workspace

# of Hendrycks & Dietterich (2019), without `frost`, which needs photographs from the user
COMMON14: list[Spec] = [
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
    "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
]  # fmt: skip


class CorruptionBoard(BoardSpec):
    """Mean accuracy over corruptions and severities: model x defense x corruption.

    Attributes:
        train_seeds: networks and defenses that train are made once with each of these; each is a line of its own.
    """

    track: Literal["corruption"]
    defenses: Specs = Field(default=["none"])
    corruptions: Specs = Field(default=COMMON14)
    severities: Annotated[list[Severity], Field(min_length=1)] = Field(default=list(SEVERITIES))
    train_seeds: Seeds = Field(default=[0])
    slots: ClassVar[dict[str, str]] = {"models": "model", "defenses": "defense", "corruptions": "corruption"}
    takes_model: ClassVar[bool] = True

    def check(self, inventory: Inventory) -> None:
        super().check(inventory)
        refuse_repeats(inventory, self.severities, self.where("severities"))
        refuse_repeats(inventory, self.train_seeds, self.where("train_seeds"))

    def cells(self, inventory: Inventory) -> Iterator[Cell]:
        data = self.images(inventory)
        corruptions: list[Named[Corruption]] = self.named(inventory, "corruptions")
        described = [inventory.identified(corruption) for corruption in corruptions]
        defenses: list[Named[Defense]] = self.named(inventory, "defenses")
        for model in self.networks(inventory, data):
            for defense in defenses:
                made = model.trained or defense.entry.trains
                used, protected = self.used(inventory, data, made), inventory.identified(defense)
                for training, seed in product(self.train_seeds if made else [0], self.seeds or ()):
                    for corruption in described:
                        yield Cell(
                            track=self.track, data=used,
                            model=model.under_defense(training),
                            defense=protected, corruption=corruption,
                            severities=sorted(self.severities), seed=seed,
                        )  # fmt: skip

    @staticmethod
    def measure(cell: Cell, ws: Workspace) -> Result:
        """Measure all images of the slice, including those misclassified without corruption."""
        data, victim = ws.evaluated(cell.data), ws.victim(cell)
        corruption, severities = ws.entry(Corruption, cell.corruption), cell.severities or []
        clean = clean_outcome(ws, cell, victim, data)
        streams = Draws(derive_seed(cell.seed, "corruption"), data.ids)

        def part(at: slice) -> Tensor:
            x, y, draws = ws.pixels(data, at), data.labels[at].to(ws.device), streams[at].to(ws.device)
            hits = []
            for severity in severities:
                changed = corruption(x, severity, draws.child(severity))
                z = fresh_passes(victim, changed, draws.child(severity), "corrupted")
                hits.append(majority(right(z, y)).cpu())
            return torch.stack(hits)

        hits = torch.cat(in_batches(part, len(data), ws.batch(data.stored)), dim=1)  # [severities, N]
        n = len(data)
        each = zip(severities, hits, strict=True)
        return Result(
            cell=cell,
            metrics={
                "clean_acc": rate(int(clean.sum()), n),
                "acc": rate(float(hits.double().mean(dim=0).sum()), n),
                **{f"acc@{s}": rate(int(hit.sum()), n) for s, hit in each},
            },
            samples={
                "n": n,
                "clean": pack(clean),
                **{f"right@{s}": pack(hit) for s, hit in zip(severities, hits, strict=True)},
            },
            flags=[
                f.as_dict()
                for f in (*convention_flags(ws, cell, victim, data, clean), *conduct_flags(ws, cell, victim, data))
            ],
            weights=fingerprint(victim),
        )
