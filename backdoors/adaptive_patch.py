"""Adaptive-Patch: four faint patches, one for each poison, and covers that keep their label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from siegebench.types import BackdoorAttack, Count, Share

CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))  # of the patches: bottom?, right?


@dataclass(frozen=True, kw_only=True)
class AdaptivePatch(BackdoorAttack):
    """Each training image gets one of four patches, blended in; a test image gets two of them, opaque.

    Qi, Xie, Li, Mahloujifar, Mittal, "Revisiting the Assumption of Latent Separability for Backdoor Defenses", ICLR
    2023.

        x' = x + a_i m_i (p_i - x),    i drawn for each training image

    Patch i lies in one corner (top left, top right, bottom left, bottom right); its colours are drawn from
    `pattern_seed`.

    Random: which images are poisoned and which are cover images, and the patch of each.

    Attributes:
        rate: fraction of the training set that is poisoned.
        cover: fraction of the training set that gets a patch and keeps its label.
        alphas: a_i of the four patches in training.
        tested: the patches of a test image, which are opaque.
        side: of a patch, in pixels of a 32-pixel image; it scales with the height of the image.
        pattern_seed: of the colours.

    Differs from the paper: patches of random colours instead of two logos, a checkerboard and a watermark. Rates are
    larger, because the data sets are smaller; `paper` has the authors'.
    """

    rate: Share = 0.03
    cover: Share = 0.03
    alphas: tuple[Share, Share, Share, Share] = (0.5, 0.2, 0.5, 0.3)
    tested: tuple[int, ...] = (0, 2)
    side: Count = 8
    pattern_seed: int = 0

    def patches(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(m, p): masks [4, 1, H, W] and colours [4, C, H, W].

        Raises:
            NotApplicable: when two patches do not fit beside each other.
        """
        channels, height, width = x.shape[1:]
        side = max(1, round(self.side * height / 32))
        if 2 * side > min(height, width):
            raise NotApplicable(f"{self!r}: two patches of {side} pixels do not fit into {height}x{width}")
        colours = Draws(self.pattern_seed, torch.arange(4)).uniform((channels, 4, 4), purpose="patches")
        colours = F.interpolate((colours > 0.5).to(x), (side, side), mode="nearest")
        m, p = x.new_zeros(4, 1, height, width), x.new_zeros(4, channels, height, width)
        for i, (bottom, right) in enumerate(CORNERS):
            top, left = bottom * (height - side), right * (width - side)
            m[i, :, top : top + side, left : left + side] = 1
            p[i, :, top : top + side, left : left + side] = colours[i]
        return m, p

    def trigger(self, x: Tensor, draws: Draws) -> Tensor:
        m, p = self.patches(x)
        for i in self.tested:
            x = torch.where(m[i].bool(), p[i], x)
        return x

    def planted(self, x: Tensor, wanted: Tensor, draws: Draws, **material: Any) -> Tensor:
        m, p = self.patches(x)
        i = draws.integers(4, purpose="patch").to(x.device)
        a = x.new_tensor(self.alphas)[i].view(-1, 1, 1, 1) * m[i]
        return (x + a * (p[i] - x)).clamp(0, 1)
