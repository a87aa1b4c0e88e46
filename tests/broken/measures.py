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


HONEST = [
    ("measure", Measures()),
]


BROKEN = [
    ("measure", Measures(value=float("nan")), "returns finite metrics and well formed flags", "one"),
    ("measure", Measures(severity="fatal"), "returns finite metrics and well formed flags", "fatal"),
    ("measure", MeasuresByChance(), "measures the same for the same draws", "torch"),
]
