"""Studies, one honest and one for each clause that breaks it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from siegebench.data import Granted, ImageSet
from siegebench.draws import Draws
from siegebench.types import Figures, Study


@dataclass(frozen=True, kw_only=True)
class Counts(Study):
    """The share of bright images, beside a coin; and one fault."""

    wrong: str = ""

    def run(self, images: ImageSet, data: Granted, draws: Draws) -> Figures:
        bright = images.pixels().flatten(1).mean(dim=1) > 0.5
        out: Figures = {"bright": (int(bright.sum()), len(bright)), "baseline_coin": float(draws.uniform(()))}
        if self.wrong == "baseline":
            out.pop("baseline_coin")
        if self.wrong == "global":
            out["again"] = float(torch.rand(()))
        return out


HONEST = [("study", Counts())]
BROKEN: list[tuple[str, Any, str, str]] = [
    ("study", Counts(wrong="baseline"), "returns finite figures with a baseline", "returns no baseline"),
    ("study", Counts(wrong="global"), "finds the same for the same draws", "global random generator of torch"),
]
