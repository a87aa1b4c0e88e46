from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.threat import ThreatModel
from siegebench.types import Measure


@dataclass(frozen=True, kw_only=True)
class Quiet(Measure):
    """Measures nothing; `odd` puts something into the row that no JSON can hold."""

    odd: bool = False

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> dict[str, Any]:
        return {"metrics": {"images": len(x)}, "flags": [{"id": "odd", "evidence": x}] if self.odd else []}
