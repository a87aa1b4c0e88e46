"""The mean of public images: what an attacker knows without any gradient."""

from __future__ import annotations

from dataclasses import dataclass

from siegebench.draws import Draws
from siegebench.types import Leak, Recovered, Shared


@dataclass(frozen=True, kw_only=True)
class Prior(Leak):
    """The mean of public images, for every client: a control, whose images must be identified no more than by chance.

    Nothing is random.
    """

    def run(self, shared: Shared, draws: Draws) -> Recovered:
        return Recovered(images=shared.mean.expand(len(shared), shared.n, *shared.shape).clone())
