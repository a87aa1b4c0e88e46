"""Measures that keep their contract, and one or more for each clause that break it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from siegebench.types import (
    Measure,
)


@dataclass(frozen=True, kw_only=True)
class Measures(Measure):
    value: float = 0.5
    severity: str = "info"

    def run(self, oracle, x, y, threat, draws):
        flags = [{"id": "seen", "severity": self.severity, "evidence": "none"}]
        return {"metrics": {"one": self.value}, "flags": flags}


class MeasuresByChance(Measures):
    def run(self, oracle, x, y, threat, draws):
        return {"metrics": {"one": float(torch.rand(()))}, "flags": []}


class MeasuresWithPictures(Measures):
    """Numbers for each image but the first `lost`, and two pictures."""

    lost: int = 0
    bright: float = 1.0

    def run(self, oracle, x, y, threat, draws):
        found = super().run(oracle, x, y, threat, draws)
        return {**found, "arrays": {"mean": x.mean(dim=(1, 2, 3))[self.lost :]}, "pictures": self.bright * x[:2]}


class LosesImages(MeasuresWithPictures):
    lost = 2


class TooBright(MeasuresWithPictures):
    bright = 2.0


HONEST = [
    ("measure", Measures()),
    ("measure", MeasuresWithPictures()),
]


BROKEN = [
    ("measure", Measures(value=float("nan")), "returns finite metrics and well formed flags", "one"),
    ("measure", Measures(severity="fatal"), "returns finite metrics and well formed flags", "fatal"),
    ("measure", LosesImages(), "keeps numbers of each image and few pictures", "4 numbers for 6 images"),
    ("measure", TooBright(), "keeps numbers of each image and few pictures", "outside"),
    ("measure", MeasuresByChance(), "measures the same for the same draws", "torch"),
]
