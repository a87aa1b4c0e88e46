"""Control: a mosaic of the colours of the backgrounds, chosen without a network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from siegebench.draws import Draws
from siegebench.threat import Access
from siegebench.types import Camouflage, Count, Positive
from siegebench.types.camouflages import Stage, Texture


@dataclass(frozen=True, kw_only=True)
class BackgroundColours(Camouflage):
    """Each texel has one of the dominant colours of the training backgrounds.

    Random: which texel has which colour.

    Attributes:
        texels: along each side.
        period: metres after which it repeats.
    """

    needs: ClassVar[Access] = "none"

    texels: Count = 16
    period: Positive = 4.0

    def paint(self, stage: Stage, draws: Draws) -> Texture:
        which = draws.integers(len(stage.colours), (self.texels, self.texels), purpose="mosaic")[0]
        return Texture(stage.colours.cpu()[which].permute(2, 0, 1).contiguous(), self.period)
