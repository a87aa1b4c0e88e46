"""Low temperature distillation: adversarial training on the soft labels of a naturally trained teacher."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.data import Granted
from siegebench.types import Positive

from ._adversarial import BallTraining, MinMax, away_from, divergence


@dataclass(frozen=True, kw_only=True)
class LTD(BallTraining):
    """TRADES with the labels q = softmax(z_t(x) / T) of a naturally trained teacher, at a low temperature T.

    Chen, Lee, "LTD: Low Temperature Distillation for Gradient Masking-free Adversarial Training", arXiv 2111.02331.

        min_theta E CE(p(x), q) + beta KL(p(x) || p(x')),    x' maximises KL(p(x) || p(x')) in the ball

    One-hot labels are wrong for ambiguous images; soft labels are not. The teacher is the model that the defense is
    given, with its weights; the student has its architecture and new weights. The temperature of the student is 1 in
    training and in use, so its logits do not grow as those of `defensive_distillation` do. To add adversarial weight
    perturbation, as the authors do, use `{name: awp, defense: ltd}`.

    Random: the initial weights, the order and augmentation of the images, and the start of the search.

    Cost: that of `trades`, and one forward pass of the teacher per training step.

    Differs from the paper: only its abstracts and those figures that its repository repeats were available. They say
    that teacher and student have fixed, different temperatures. T, beta and the inner maximum are choices made here.
    Label smoothing of the recipe is not used.

    Attributes:
        temperature: T of the teacher; 1 is no temperature.
        beta: weight of the divergence.
    """

    temperature: Positive = 5.0
    beta: Positive = 6.0

    def wrap(self, model: Classifier) -> Classifier:
        return model  # its weights are the teacher's; `fit` replaces them by those of the student

    def problem(self, model: Classifier, data: Granted, seed: int) -> MinMax:
        teacher = copy.deepcopy(model).eval().requires_grad_(False)
        model.requires_grad_(True)

        def outer(model: Classifier, x: Tensor, y: Tensor, x_adv: Tensor, z_adv: Tensor) -> Tensor:
            with torch.no_grad():
                q = F.softmax(teacher(x) / self.temperature, dim=1)
            z = model(x)
            return F.cross_entropy(z, q) + self.beta * divergence(z, z_adv).mean()

        return self.min_max(lambda model, x, y: away_from(model, x), outer, start="near")
