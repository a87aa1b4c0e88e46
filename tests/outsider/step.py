from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from torch import Tensor

from siegebench import ops
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.threat import NORMS, Norm, ThreatModel
from siegebench.types import Attack


@dataclass(frozen=True, kw_only=True)
class Step(Attack):
    """One step along the gradient, and whatever a bad day may bring.

    Attributes:
        tag: tells instances apart.
        seconds: slept for each batch, so that a run can be cut off.
        ends: how it ends.
        log: a file that gets one line for each batch.
        meets: a folder; no batch is attacked before two processes have come there.
    """

    norms: ClassVar[tuple[Norm, ...]] = NORMS
    local: ClassVar[tuple[str, ...]] = ("log", "meets")

    tag: str = ""
    seconds: float = 0.0
    ends: Literal["well", "raises", "exits", "dies", "dies once", "too far"] = "well"
    log: str | None = None
    meets: str | None = None

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
        before = 0
        if self.log is not None:
            with open(self.log, "a+") as file:
                file.seek(0)
                before = file.read().count(f"{self.tag}\n")
                file.write(f"{self.tag}\n")
        if self.meets is not None:
            (Path(self.meets) / str(os.getpid())).touch()
            while len(list(Path(self.meets).iterdir())) < 2:
                time.sleep(0.01)
        time.sleep(self.seconds)
        if self.ends == "raises":
            raise RuntimeError(f"step {self.tag} fell over")
        if self.ends == "exits":
            sys.exit(0)
        if self.ends == "dies" or (self.ends == "dies once" and before == 0):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.ends == "too far":
            return 1 - x
        g, _, _ = oracle.gradient(x, lambda z: ops.cross_entropy(z, y))
        return threat.project(x + threat.eps * ops.normalise(g, threat.norm), x)
