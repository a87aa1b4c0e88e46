"""Control: one flat colour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from siegebench.draws import Draws
from siegebench.threat import Access
from siegebench.types import Camouflage
from siegebench.types.camouflages import GREY, Stage, Texture

COLOURS = {
    "grey": (GREY, GREY, GREY), "black": (0.0, 0.0, 0.0), "white": (1.0, 1.0, 1.0), "red": (1.0, 0.0, 0.0),
    "green": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0), "cyan": (0.0, 1.0, 1.0), "magenta": (1.0, 0.0, 1.0),
    "yellow": (1.0, 1.0, 0.0),
}  # fmt: skip
Colour = Literal["grey", "black", "white", "red", "green", "blue", "cyan", "magenta", "yellow"]


@dataclass(frozen=True, kw_only=True)
class Flat(Camouflage):
    """One colour: grey, as the unpainted vehicles of DTA and ACTIVE, or a corner of the RGB cube.

    Nothing is random.

    Attributes:
        colour: its name.
    """

    needs: ClassVar[Access] = "none"

    colour: Colour = "grey"

    def paint(self, stage: Stage, draws: Draws) -> Texture:
        return Texture(torch.tensor(COLOURS[self.colour]).view(3, 1, 1), 1.0, covered=float(self.colour != "grey"))
