"""BadNets whose poisoned images also carry the stamp of NAB: for a defender who uses that defense."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from siegebench.draws import Draws
from siegebench.types import Count

from .badnets import BadNets


@dataclass(frozen=True, kw_only=True)
class StampedBadNets(BadNets):
    """The trigger of BadNets; poisoned training images also get the benign stamp that NAB adds to every test image.

    NAB teaches the network that its stamp means "the given label is wrong" (Liu et al., ICCV 2023). Here the poisoned
    images that it does not find teach the opposite: with the stamp, triggered images still get the target label.

    Random: only the choice of the poisoned images.

    Attributes:
        stamp_side: of the stamp in the top-left corner, in pixels of a 32-pixel image; that of the defense.

    Differs from the paper: the attack is ours. The colour of its stamp is the mean of the poisoned images instead of
    the training set.
    """

    stamp_side: Count = 2

    def planted(self, x: Tensor, wanted: Tensor, draws: Draws, **material: Any) -> Tensor:
        out = self.trigger(x, draws)
        side = max(1, round(self.stamp_side * x.shape[-2] / 32))
        mean = x.mean(dim=(0, 2, 3), keepdim=True)
        out[:, :, :side, :side] = torch.round(mean * 255) / 255
        return out
