"""BATT: a rotation or a translation is the trigger."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from siegebench.draws import Draws
from siegebench.types import BackdoorAttack, Number, Share

from . import _warp


@dataclass(frozen=True, kw_only=True)
class BATT(BackdoorAttack):
    """x' = x rotated by `angle` degrees, or moved to the right by `shift` pixels; no pixel pattern is added.

    Xu, Li, Jiang, Xia, "BATT: Backdoor Attack with Transformation-based Triggers", ICASSP 2023.

    Cover images are transformed in the same way but less (up to the fraction `benign`) and keep their label, so that
    only the full transformation is the trigger.

    Random: which images are poisoned and which are cover images, and the transformations of the cover images.

    Attributes:
        rate: fraction of the training set that is poisoned.
        cover: fraction of the training set that is transformed by a random amount within +-benign.
        kind: `rotate` or `shift`.
        angle: of the rotation, in degrees, counterclockwise.
        shift: in pixels of a 32-pixel image; it scales with the width of the image.
        benign: largest transformation of a cover image, as a fraction of that of the trigger.

    Differs from the paper: the border is reflected, because black corners would be a patch trigger. The authors rotate
    every benign image by up to 10 degrees, anew in each epoch and again at test time; here the cover images are rotated
    once, and `paper` makes all images cover images. The shift is ours: the released code moves poisoned images by zero
    pixels.
    """

    rate: Share = 0.1
    cover: Share = 0.2
    kind: Literal["rotate", "shift"] = "rotate"
    angle: Number = 16.0
    shift: Number = 6.0
    benign: Share = 0.5

    def transformed(self, x: Tensor, fraction: Tensor) -> Tensor:
        """x with a fraction [n] of the trigger's transformation."""
        if self.kind == "rotate":
            return _warp.rotated(x, fraction * self.angle)
        return _warp.moved(x, fraction * (self.shift * x.shape[-1] / 32))

    def trigger(self, x: Tensor, draws: Draws) -> Tensor:
        return self.transformed(x, torch.ones(len(x)))

    def covered(self, x: Tensor, y: Tensor, draws: Draws, **material: Any) -> Tensor:
        return self.transformed(x, self.benign * (2 * draws.uniform(purpose="benign") - 1))
