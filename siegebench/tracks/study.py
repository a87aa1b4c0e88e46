"""The study track: experiments with victims of their own. Their rows are stored and shown, but never ranked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch

from siegebench import registry
from siegebench.cells import Cell, Result, rate
from siegebench.data import Granted
from siegebench.draws import Draws, derive_seed
from siegebench.inventory import Inventory
from siegebench.tracks.base import BoardSpec, Specs, refuse_repeats
from siegebench.types import Study
from siegebench.workspace import Workspace

OWN: dict[str, Any] = {"name": "own", "version": 1}  # in place of a model: the study makes its victim


class StudyBoard(BoardSpec):
    """Studies on a data set; each trains the victim that it attacks."""

    track: Literal["study"]
    studies: Specs
    slots: ClassVar[dict[str, str]] = {"studies": "study"}
    late: ClassVar[int] = 3

    def check(self, inventory: Inventory) -> None:
        if self.data is None:
            raise inventory.document.error(self._where, "this study board has no data, and neither has the suite")
        self.source(inventory)
        self.named(inventory, "studies")
        refuse_repeats(inventory, self.studies, self.where("studies"), map(registry.normal, self.studies))
        refuse_repeats(inventory, self.seeds or (), self.where("seeds"))

    def cells(self, inventory: Inventory) -> Iterator[Cell]:
        data = self.images(inventory)
        for study in self.named(inventory, "studies"):
            for seed in self.seeds or ():
                yield Cell(
                    track=self.track, data=self.used(inventory, data), model=OWN, study=inventory.identified(study),
                    seed=seed,
                )  # fmt: skip

    @staticmethod
    def measure(cell: Cell, ws: Workspace) -> Result:
        study = ws.entry(Study, cell.study)
        found, _ = registry.find("study", (cell.study or {})["name"])
        granted = Granted(
            found.name, found.card.sees, train=lambda: ws.splits(cell.data)[0],
            clean=lambda: ws.splits(cell.data)[1], val=lambda: ws.splits(cell.data)[2],
        )  # fmt: skip
        draws = Draws(derive_seed(cell.seed, "study"), torch.zeros(1, dtype=torch.long))
        figures = study(ws.evaluated(cell.data), granted, draws)
        told = {name: rate(*v) if isinstance(v, tuple) else {"value": float(v)} for name, v in figures.items()}
        return Result(cell=cell, metrics=told)
