"""Defensive distillation: a student fitted to a teacher's softened answers, deployed without the softening."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench.draws import Draws, derive_seed
from siegebench.train import Recipe, train
from siegebench.types import Classifier, Defense, Granted, Positive


@dataclass(frozen=True, kw_only=True)
class DefensiveDistillation(Defense):
    """Train a teacher at temperature T, a student on its soft labels at T, and deploy the student at temperature 1.

    Papernot et al., "Distillation as a Defense to Adversarial Perturbations against Deep Neural Networks", S&P 2016.

    With softmax_T(z) = softmax(z / T), x augmented afresh in every epoch, and both nets of the model's architecture:
        teacher  min CE(softmax_T(z_t(x)), y)
        student  min CE(softmax_T(z_s(x)), softmax_T(z_t(x)))
    The logits are fitted at T, so the deployed ones are about T times larger, the softmax saturates, and the gradient
    of the cross-entropy vanishes. Attacks on differences of logits are not affected (Carlini & Wagner, S&P 2017).

    The initial weights and the order of the images are random.

    Differs from the paper: the teacher answers for the augmented image that the student sees, not for the original; both
    losses are multiplied by T, which leaves the minimum where it is and the size of the steps independent of T.

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
    recipe: Recipe = Recipe()

    def wrap(self, model: Classifier) -> Classifier:
        return model.fresh(0)  # the structure; fit brings the weights

    def fit(self, defended: Classifier, data: Granted, draws: Draws) -> None:
        T = self.temperature
        images = data.train

        def hard(z: Tensor, y: Tensor, x: Tensor, places: Tensor) -> Tensor:
            return T * F.cross_entropy(z / T, y)

        def soft(z: Tensor, y: Tensor, x: Tensor, places: Tensor) -> Tensor:
            with torch.no_grad():
                q = F.softmax(teacher(x) / T, dim=1)
            return T * F.cross_entropy(z / T, q)

        teacher = defended.fresh(derive_seed(draws.seed, "teacher"))
        train(teacher, images, self.recipe, derive_seed(draws.seed, "teacher's images"), loss=hard)
        student = defended.fresh(derive_seed(draws.seed, "student"))
        defended.load_state_dict(student.state_dict())
        train(defended, images, self.recipe, derive_seed(draws.seed, "student's images"), loss=soft)
