"""TRADES: trade the accuracy on clean images against how much an adversary changes the prediction."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.data import Granted
from siegebench.types import Positive

from ._adversarial import BallTraining, MinMax, away_from, divergence


@dataclass(frozen=True, kw_only=True)
class TRADES(BallTraining):
    """min_theta E CE(z(x), y) + beta KL(p(x) || p(x')), where x' in the ball around x maximises KL(p(x) || p(x')).

    Zhang, Yu, Jiao, Xing, El Ghaoui, Jordan, "Theoretically Principled Trade-off between Robustness and Accuracy", ICML
    2019.

    p is the softmax of the logits z. The inner maximum takes K steps of PGD from x + 0.001 N(0, I), because the
    gradient of the divergence is zero at x. The labels appear in the first term only: beta trades clean accuracy
    against robust accuracy. The deployed network is an ordinary one with useful gradients.

    Random: the initial weights, the order and augmentation of the images, and the start of the search.

    Cost: K more forward and backward passes per training step than standard training, and one more on the clean images,
    which are also passed forward once without a gradient.

    Differs from the paper: one cosine schedule instead of a piecewise constant one. The authors use eps 0.031; the
    default here is 8/255 = 0.0314.

    Attributes:
        beta: weight of the divergence; the authors use 6 on CIFAR-10 and 1 on MNIST.
    """

    beta: Positive = 6.0

    def problem(self, model: Classifier, data: Granted, seed: int) -> MinMax:
        def outer(model: Classifier, x: Tensor, y: Tensor, x_adv: Tensor, z_adv: Tensor) -> Tensor:
            z = model(x)
            natural = F.cross_entropy(z, y, label_smoothing=self.recipe.smoothing)
            return natural + self.beta * divergence(z, z_adv).mean()

        return self.min_max(lambda model, x, y: away_from(model, x), outer, start="near")
