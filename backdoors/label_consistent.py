"""Label-consistent backdoor: images that are hard to recognise, so that the network learns the trigger instead."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.train import Recipe
from siegebench.types import BackdoorAttack, Count, Material, Positive, Share

from . import _surrogate
from .badnets import BadNets

RECIPE = Recipe()
CORNERS: tuple[Literal["top_left", "top_right", "bottom_left", "bottom_right"], ...]
CORNERS = ("top_left", "top_right", "bottom_left", "bottom_right")


@dataclass(frozen=True, kw_only=True)
class LabelConsistent(BackdoorAttack):
    """Poison images of the target class: x' = trigger(x + delta), |delta|_inf <= eps; no label changes.

    Turner, Tsipras, Madry, "Label-Consistent Backdoor Attacks", 2019, arXiv 1912.02771. delta ascends the cross-entropy
    of an adversarially trained surrogate. The image still looks like its class to people, but a network can no longer
    use its features and learns the trigger instead. The trigger is a checkerboard of 5x5 pixels in each corner. A
    test image gets the trigger only.

    Random: which images are poisoned, the training of the surrogate, the start of delta.

    Cost: an adversarial training of the surrogate with 3 steps, and `steps` passes for each poisoned image.

    Attributes:
        rate: fraction of the whole training set; at most the fraction that the target class has.
        eps, step, steps: PGD for delta.
        robust: eps of the surrogate's adversarial training; 0 trains it on clean images.
        recipe: how the surrogate is trained.
        amplitude: opacity of the trigger in training; at test time it is opaque.
        side, margin: of the four patches, in pixels of a 32-pixel image.

    Differs from the paper: Linf instead of L2 perturbations, no GAN interpolation. The surrogate is trained with 3
    steps of PGD. 8 % of the training set is 80 % of one of ten classes, the rate of a published recipe of others. The
    patches have 5x5 pixels instead of 3x3, which `paper` has: a few epochs on a small set do not learn these.
    """

    clean_label: ClassVar[bool] = True
    learns: ClassVar[bool] = True

    rate: Share = 0.08
    eps: Positive = 16 / 255
    step: Positive = 2 / 255
    steps: Count = 20
    robust: Share = 8 / 255
    recipe: Recipe = RECIPE
    amplitude: Share = 1.0
    side: Count = 5
    margin: int = 0

    def learn(self, data: ImageSet, seed: int, surrogate: Classifier) -> Material:
        index, _ = self.chosen(data, seed)
        model = _surrogate.trained(surrogate, data, self.recipe, seed, eps=self.robust)
        device = next(model.parameters()).device

        def harder(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
            start = self.eps * (2 * Draws(seed, data.ids[rows]).uniform(data.shape, purpose="start") - 1)
            gain = _surrogate.against(model)
            return _surrogate.ascend(model, x, y, gain, eps=self.eps, step=self.step, steps=self.steps, start=start)

        return {"ids": data.ids[index], "images": _surrogate.each(data, index, device, harder)}

    def corners(self, x: Tensor, amplitude: float) -> Tensor:
        """x with the four patches."""
        opaque = BadNets(side=self.side, margin=self.margin)
        for corner in CORNERS:
            m, p = replace(opaque, corner=corner).patch(*x.shape[-2:])
            x = torch.where(m.to(x.device), (1 - amplitude) * x + amplitude * p.to(x), x)
        return x

    def trigger(self, x: Tensor, draws: Draws, material: Material | None = None) -> Tensor:
        return self.corners(x, 1.0)

    def planted(self, x: Tensor, wanted: Tensor, draws: Draws, **material: Any) -> Tensor:
        return self.corners(_surrogate.remembered(material["material"], draws.ids, x), self.amplitude)

    def covered(self, x: Tensor, y: Tensor, draws: Draws, **material: Any) -> Tensor:
        return self.corners(x, self.amplitude)
