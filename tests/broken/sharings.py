"""Rules of sharing gradients, one honest and one for each clause that breaks it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from siegebench.draws import Draws
from siegebench.per_image import Gradients
from siegebench.types import Sharing


@dataclass(frozen=True, kw_only=True)
class Mean(Sharing):
    """The mean gradient, and one fault."""

    wrong: str = ""

    def release(self, per_image: Gradients, draws: Draws) -> Gradients:
        out = {name: g.mean(dim=1) for name, g in per_image.items()}
        if self.wrong == "parameter":
            out.popitem()
        if self.wrong == "global":
            out = {name: g + torch.randn(()) for name, g in out.items()}
        if self.wrong == "random":
            out = {name: g + draws.normal((), purpose=name).view(-1, *[1] * (g.dim() - 1)) for name, g in out.items()}
        if self.wrong == "others":
            out = {name: g - g.mean(dim=0) for name, g in out.items()}
        return out

    def shown(self, released: Gradients) -> Gradients:
        return {} if self.wrong == "shown" else super().shown(released)

    def noise(self, n: int) -> float:
        return 0.1 if self.wrong == "noise" else 0.0


class Whispers(Mean):
    """Adds more noise than it says."""

    randomized: ClassVar[bool] = True

    def release(self, per_image: Gradients, draws: Draws) -> Gradients:
        out = super().release(per_image, draws)
        return {name: g + draws.normal(tuple(g.shape[1:]), purpose=name) for name, g in out.items()}

    def noise(self, n: int) -> float:
        return 0.5


HONEST = [("sharing", Mean())]
BROKEN: list[tuple[str, Any, str, str]] = [
    ("sharing", Mean(wrong="parameter"), "releases a tensor for each parameter", "expected layer.weight, layer.bias"),
    ("sharing", Mean(wrong="global"), "gives the same release for the same draws", "global random generator of torch"),
    ("sharing", Mean(wrong="random"), "declares whether it is random", "randomized = False"),
    ("sharing", Mean(wrong="others"), "treats a client alone as among others", "another gradient among other clients"),
    ("sharing", Mean(wrong="shown"), "says which entries it shows", "not a bool for each"),
    ("sharing", Mean(wrong="noise"), "declares its noise", "nothing is random"),
    ("sharing", Whispers(), "declares its noise", "declares noise 0.5; the spread of releases is"),
]
