"""The canvas of figures: its size, and scales from values to pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT = 680, 380
LEFT, RIGHT, TOP, BOTTOM = 48, 18, 16, 44
LETTER = 6.3  # approximate width of a letter of the labels


@dataclass(frozen=True)
class Axis:
    """A linear (or logarithmic) scale from values to pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, v = self.low, self.high, value
        if self.log:
            low, high, v = math.log10(low), math.log10(high), math.log10(v)
        return round(self.start + (self.end - self.start) * (v - low) / (high - low), 1)

    def ticks(self, step: float) -> list[dict[str, Any]]:
        """Positions and labels of round percentages."""
        first = math.ceil(self.low / step - 1e-9)
        values = [step * i for i in range(first, math.floor(self.high / step + 1e-9) + 1)]
        return [{"at": self(v), "text": f"{100 * v:.0f}"} for v in values]


def short(name: str, limit: int = 26) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"
