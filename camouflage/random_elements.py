"""Control of area camouflage: a random element over the same share of the paint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from siegebench.draws import Draws
from siegebench.threat import Access
from siegebench.types import Camouflage, Count, Positive, Share
from siegebench.types.camouflages import Stage, Texture

from ._tiles import places, tiled


@dataclass(frozen=True, kw_only=True)
class RandomElements(Camouflage):
    """One element of random colours, repeated over a share of the paint at the places of `area_camouflage`.

    Random: the element, and which places carry it.

    Attributes:
        covered: share of the places with the element.
        texels: along each side of the element.
        tiles: places along each side of a period.
        period: metres after which the places repeat.
    """

    needs: ClassVar[Access] = "none"

    covered: Share = 1.0
    texels: Count = 8
    tiles: Count = 4
    period: Positive = 4.0

    def paint(self, stage: Stage, draws: Draws) -> Texture:
        there = places(draws, self.tiles, self.covered)
        element = draws.uniform((3, self.texels, self.texels), purpose="element")[0]
        return Texture(tiled(element, there), self.period, covered=float(there.float().mean()))
