"""Defensive distillation: a student trained on the soft labels of a teacher, deployed at temperature 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.data import Granted, ImageSet
from siegebench.draws import Draws, derive_seed
from siegebench.train import Recipe, train
from siegebench.types import Defense, ModelSource, Positive

from ._wrapped import Scaled

RECIPE = Recipe()


@dataclass(frozen=True, kw_only=True)
class DefensiveDistillation(Defense):
    """Train a teacher at temperature T and a student on its soft labels at T; deploy the student at temperature 1.

    Papernot et al., "Distillation as a Defense to Adversarial Perturbations against Deep Neural Networks", S&P 2016.

    With softmax_T(z) = softmax(z / T), and both networks of the model's architecture unless `teacher` names another:
        teacher  min CE(softmax_T(z_t(x)), y)
        student  min CE(softmax_T(z_s(x)), softmax_T(z_t(x)))
    The logits are fitted at T, so the deployed logits are T times larger than they would be otherwise. The softmax
    saturates, and the gradient of the cross-entropy vanishes. Attacks on differences of logits are not affected
    (Carlini & Wagner, S&P 2017).

    Random: the initial weights and the order of the images.

    Differs from the paper: the networks are trained as u = z / T, and the output of the trained student is multiplied
    by T. The losses are the same functions of z. An optimiser whose steps have a fixed length does not have to grow the
    logits T-fold first, so the student is as accurate as the model at every T and with every recipe. The teacher labels
    the augmented image that the student is trained on, not the original.

    Attributes:
        temperature: T; the authors use 20 and 100.
        recipe: how the teacher and the student are trained.
        teacher: a model spec, as in a suite, for a teacher of another architecture. It is trained with its own recipe,
            or used as it is if it has published weights; those were fitted at temperature 1, so its soft labels are
            softmax_T of its logits. By default the teacher has the model's architecture and `recipe`.
    """

    trains: ClassVar[bool] = True
    adaptive: ClassVar[tuple[dict[str, Any], ...]] = (
        {"name": "pgd", "loss": "margin", "steps": 100},
        {"name": "apgd", "loss": "targeted_dlr"},
        {"name": "cw", "steps": 1000, "lr": 0.01},  # the authors' lr; with less, black and white pixels hardly move
    )

    added: ClassVar[tuple[str, ...]] = ("teacher",)

    temperature: Positive = 20.0
    recipe: Recipe = RECIPE
    teacher: ModelSource | None = None

    def identity(self) -> dict[str, Any]:
        weights = self.teacher.identity() if self.teacher is not None else {}
        return {"teacher_weights": weights} if weights else {}

    def wrap(self, model: Classifier) -> Classifier:
        return Scaled(model.fresh(0), self.temperature)  # the structure; `fit` trains the weights

    def fit(self, defended: Classifier, data: Granted, draws: Draws) -> None:
        assert isinstance(defended, Scaled)
        student, images = defended.inner, data.train
        teacher, T = self._teacher(student, images, draws.seed)

        def soft(u: Tensor, y: Tensor, x: Tensor, index: Tensor) -> Tensor:
            with torch.no_grad():
                q = F.softmax(teacher(x) / T, dim=1)
            return F.cross_entropy(u, q)

        student.load_state_dict(student.fresh(derive_seed(draws.seed, "student")).state_dict())
        train(student, images, self.recipe, derive_seed(draws.seed, "student's images"), loss=soft)

    def _teacher(self, student: Classifier, images: ImageSet, seed: int) -> tuple[Classifier, float]:
        """The trained teacher, and what its outputs are to be divided by."""
        own, recipe = derive_seed(seed, "teacher"), self.recipe
        if self.teacher is None:
            teacher = student.fresh(own)
        else:
            with torch.random.fork_rng(devices=[]):  # initialisers draw from the global generator
                teacher = self.teacher.build_for(images).to(next(student.parameters()).device)
            if self.teacher.pretrained():
                return teacher.eval(), self.temperature
            teacher, recipe = teacher.fresh(own), getattr(self.teacher, "recipe", self.recipe)
        train(teacher, images, recipe, derive_seed(seed, "teacher's images"))
        return teacher, 1.0
