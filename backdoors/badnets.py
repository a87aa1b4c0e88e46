"""BadNets: a small patch in a corner of the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from siegebench.types import BackdoorAttack, Count


@dataclass(frozen=True, kw_only=True)
class BadNets(BackdoorAttack):
    """x' = x (1 - m) + p m with a patch p of a few pixels (Gu, Dolan-Gavitt, Garg 2017).

    The mask m is explicit, so a black pixel of the patch makes the image black there. Sizes are in pixels of a 32-pixel
    image and scale with the height of the image.

    Random: only the choice of the poisoned images.

    Attributes:
        pattern: `checker` alternates white and black, white first; `white` and `black` are plain squares.
        side: of the square patch.
        margin: between the patch and the edges of the image.
        corner: position of the patch.

    Differs from the paper: the patch scales with the image. It keeps a distance from the edge, so that a random crop
    during training rarely removes it.
    """

    pattern: Literal["checker", "white", "black"] = "checker"
    side: Count = 3
    margin: Annotated[int, Field(ge=0, strict=True)] = 3
    corner: Literal["bottom_right", "bottom_left", "top_right", "top_left"] = "bottom_right"

    def patch(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """(m, p): the boolean mask and the pixel values of the patch, both [height, width].

        Raises:
            NotApplicable: when the patch does not fit into the image.
        """
        side, margin = max(1, round(self.side * height / 32)), round(self.margin * height / 32)
        if side + margin > min(height, width):
            raise NotApplicable(f"{self!r}: patch {side} + margin {margin} pixels does not fit into {height}x{width}")
        vertical, horizontal = self.corner.split("_")
        top = margin if vertical == "top" else height - margin - side
        left = margin if horizontal == "left" else width - margin - side
        if self.pattern == "checker":
            cell = torch.arange(side) * self.side // side  # the same checkerboard at any resolution
            square = ((cell[:, None] + cell + 1) % 2).float()
        else:
            square = torch.full((side, side), float(self.pattern == "white"))
        m, p = torch.zeros(height, width, dtype=torch.bool), torch.zeros(height, width)
        m[top : top + side, left : left + side] = True
        p[top : top + side, left : left + side] = square
        return m, p

    def trigger(self, x: Tensor, draws: Draws) -> Tensor:
        m, p = self.patch(x.shape[-2], x.shape[-1])
        return torch.where(m.to(x.device), p.to(x), x)
