"""WaNet: a smooth warp of the image is the trigger."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench.draws import Draws
from siegebench.types import BackdoorAttack, Count, Positive, Share

from . import _warp


@dataclass(frozen=True, kw_only=True)
class WaNet(BackdoorAttack):
    """x'(i, j) = x((i, j) + s F(i, j)) with one smooth random field F of displacements.

    Nguyen, Tran, "WaNet - Imperceptible Warping-based Backdoor Attack", ICLR 2021; the variant that only poisons data.

    F is drawn as k x k control points in U(-1, 1)^2, divided by their mean absolute value, and upsampled (bicubic).
    Noise mode: cover images are warped by s F plus a displacement drawn for every pixel, and keep their label, so that
    the network has to learn this warp and not warping as such.

    Random: which images are poisoned and which are cover images, and the noise of the cover images. F depends on
    `pattern_seed` only; results vary with it, so average over some.

    Attributes:
        rate: fraction of the training set that is poisoned.
        cover: fraction of the training set that is warped with noise and keeps its label; twice the rate in the paper.
        k: control points along each side.
        displacement: mean absolute displacement along an axis, in pixels of a 32-pixel image; s is computed from it.
            0.19 is that of the authors' s = 0.5, k = 4 at 32 pixels.
        noise: largest displacement by the noise, in pixels of a 32-pixel image.
        pattern_seed: of F.

    Differs from the paper: the authors control the training and draw poisoned and cover images anew in every batch,
    here they are fixed. The displacement scales with the image; theirs is a fifth of a pixel at any size, which is
    negligible at 224. It is larger by default: images that are poisoned once need it, `paper` has the authors' value.
    """

    rate: Share = 0.1
    cover: Share = 0.2
    k: Count = 4
    displacement: Positive = 1.5
    noise: Positive = 1.5
    pattern_seed: int = 0

    def field(self, x: Tensor) -> Tensor:
        """s F in pixels, [2, H, W]: along rows and columns."""
        points = 2 * Draws(self.pattern_seed, torch.arange(2)).uniform((self.k, self.k), purpose="wanet") - 1
        points = points / points.abs().mean()
        flow = F.interpolate(points[None].to(x), x.shape[-2:], mode="bicubic", align_corners=True)[0]
        return flow * (self.displacement * x.shape[-2] / 32 / flow.abs().mean())

    def warped(self, x: Tensor, extra: Tensor | float = 0.0) -> Tensor:
        """x moved by s F + extra; places outside the image are clamped to its edge."""
        rows, columns = _warp.own(x)
        dy, dx = (self.field(x)[None] + extra).unbind(1)
        return _warp.at(x, rows + dy, columns + dx, padding="border")

    def trigger(self, x: Tensor, draws: Draws) -> Tensor:
        return self.warped(x)

    def covered(self, x: Tensor, y: Tensor, draws: Draws, **material: Any) -> Tensor:
        amount = self.noise * x.shape[-2] / 32
        return self.warped(x, amount * (2 * draws.uniform((2, *x.shape[-2:]), purpose="noise") - 1).to(x))
