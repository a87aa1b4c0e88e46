"""Leaks, one honest and one for each clause that breaks it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from siegebench.draws import Draws
from siegebench.types import Leak, Recovered, Shared


@dataclass(frozen=True, kw_only=True)
class Division(Leak):
    """The analytic leak of a first linear layer, and one fault."""

    wrong: str = ""

    def run(self, shared: Shared, draws: Draws) -> Recovered:
        weight, bias = list(shared.released.values())[:2]
        x = (weight / bias[..., None]).mean(dim=1).view(len(shared), 1, *shared.shape).clamp(0, 1)
        if self.wrong == "range":
            x = x + 1
        if self.wrong == "global":
            x = (x + torch.rand(())).clamp(0, 1)
        if self.wrong == "others":
            x = (x + x.mean(dim=0)) / 2
        if self.wrong == "blind":
            x = shared.mean.expand_as(x)
        if self.wrong == "model":
            shared.model.train()
        return Recovered(images=x)


HONEST = [("leak", Division())]
BROKEN: list[tuple[str, Any, str, str]] = [
    ("leak", Division(wrong="range"), "returns images or labels of the right form", "pixels outside [0, 1]"),
    ("leak", Division(wrong="global"), "gives the same result for the same draws", "global random generator of torch"),
    ("leak", Division(wrong="others"), "treats a client alone as among others", "among other clients"),
    ("leak", Division(wrong="blind"), "uses what was released", "give the same images"),
    ("leak", Division(wrong="model"), "leaves the model as found", "changed weights"),
]
