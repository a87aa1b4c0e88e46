"""Defensive distillation: a student fitted to a teacher's softened answers, deployed without the softening."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.data import Granted
from siegebench.draws import Draws, derive_seed
from siegebench.train import Recipe, train
from siegebench.types import Defense, Positive

from ._wrapped import Scaled

RECIPE = Recipe()


@dataclass(frozen=True, kw_only=True)
class DefensiveDistillation(Defense):
    """Train a teacher at temperature T, a student on its soft labels at T, and deploy the student at temperature 1.

    Papernot et al., "Distillation as a Defense to Adversarial Perturbations against Deep Neural Networks", S&P 2016.

    With softmax_T(z) = softmax(z / T), and both nets of the model's architecture:
        teacher  min CE(softmax_T(z_t(x)), y)
        student  min CE(softmax_T(z_s(x)), softmax_T(z_t(x)))
    The logits are fitted at T, so the deployed ones are T times larger than they would be otherwise, the softmax
    saturates, and the gradient of the cross-entropy vanishes. Attacks on differences of logits do not notice (Carlini
    & Wagner, S&P 2017).

    The initial weights and the order of the images are random.

    Differs from the paper: the nets are trained as u = z / T and T is multiplied to the output of the finished student.
    The losses are the same functions of z, and an optimiser whose steps have a given length need not grow the logits
    T-fold first, so the student is as accurate as the model at every T and with every recipe. The teacher answers for
    the augmented image that the student sees, not for the original.

    Attributes:
        temperature: T; the authors use 20 and 100.
        recipe: how the teacher and the student are trained.
    """

    trains: ClassVar[bool] = True
    adaptive: ClassVar[tuple[dict[str, Any], ...]] = (
        {"name": "pgd", "loss": "margin", "steps": 50},
        {"name": "apgd", "loss": "targeted_dlr"},
    )

    temperature: Positive = 20.0
    recipe: Recipe = RECIPE

    def wrap(self, model: Classifier) -> Classifier:
        return Scaled(model.fresh(0), self.temperature)  # the structure; fit brings the weights

    def fit(self, defended: Classifier, data: Granted, draws: Draws) -> None:
        assert isinstance(defended, Scaled)
        student, images = defended.inner, data.train
        teacher = student.fresh(derive_seed(draws.seed, "teacher"))
        train(teacher, images, self.recipe, derive_seed(draws.seed, "teacher's images"))

        def soft(u: Tensor, y: Tensor, x: Tensor, places: Tensor) -> Tensor:
            with torch.no_grad():
                q = F.softmax(teacher(x), dim=1)
            return F.cross_entropy(u, q)

        student.load_state_dict(student.fresh(derive_seed(draws.seed, "student")).state_dict())
        train(student, images, self.recipe, derive_seed(draws.seed, "student's images"), loss=soft)
