"""A stand-in for the regulariser of Lin et al.: keep the energy of a classifier constant in the ball."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.data import Granted
from siegebench.types import Positive

from ._adversarial import BallTraining, Gain, MinMax


@dataclass(frozen=True, kw_only=True)
class LikelihoodFlattening(BallTraining):
    """A stand-in: min_theta E CE(z(x), y) + weight |E(x') - E(x)| with the energy E(x) = -logsumexp_k z_k(x).

    After Lin et al., "Likelihood Landscapes: A Unifying Principle Behind Many Adversarial Defenses", ECCV 2020
    workshops, arXiv 2008.11300, who read a classifier as an energy model, log p(x) = -E(x) + const, and flatten it. x'
    is a random image of the ball (`steps` 0), or K steps of PGD towards the largest difference. The term does not
    depend on the labels: the logits may change as long as their sum of exponentials does not.

    Random: the initial weights, the order and augmentation of the images, and the start in the ball.

    Cost: K + 2 more forward passes and K + 1 more backward passes per training step than standard training.

    Differs from the paper: its measure of flatness and its regulariser were not available; this term is ours, and
    results say nothing about theirs.

    Attributes:
        weight: of the term.
    """

    weight: Positive = 1.0
    step: Positive = 4 / 255
    steps: Annotated[int, Field(ge=0, strict=True)] = 3

    def problem(self, model: Classifier, data: Granted, seed: int) -> MinMax:
        def inner(model: Classifier, x: Tensor, y: Tensor) -> Gain:
            with torch.no_grad():
                clean = model(x).logsumexp(dim=1)
            return lambda z: (z.logsumexp(dim=1) - clean).abs().sum()

        def outer(model: Classifier, x: Tensor, y: Tensor, x_adv: Tensor, z_adv: Tensor) -> Tensor:
            z = model(x)
            flat = (z_adv.logsumexp(dim=1) - z.logsumexp(dim=1)).abs().mean()
            return F.cross_entropy(z, y, label_smoothing=self.recipe.smoothing) + self.weight * flat

        return self.min_max(inner, outer, start="uniform")
