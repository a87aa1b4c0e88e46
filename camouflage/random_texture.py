"""Control: texels of random colours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from siegebench.draws import Draws
from siegebench.render.compose import Projection
from siegebench.threat import Access
from siegebench.types import Camouflage, Count, Positive
from siegebench.types.camouflages import Stage, Texture


@dataclass(frozen=True, kw_only=True)
class RandomTexture(Camouflage):
    """Texels of independent uniform colours. In published work, such patterns alone hide vehicles in many views.

    Random: the texture.

    Attributes:
        texels: along each side.
        period: metres after which it repeats.
        projection: as of a Texture.
        draw: number of the texture; each has other colours.
    """

    needs: ClassVar[Access] = "none"

    texels: Count = 16
    period: Positive = 4.0
    projection: Projection = "triplanar"
    draw: int = 0

    def paint(self, stage: Stage, draws: Draws) -> Texture:
        pixels = draws.uniform((3, self.texels, self.texels), step=self.draw, purpose="random texture")[0]
        return Texture(pixels, self.period, self.projection)
