"""Fast adversarial training: one gradient step from a random start, with a check for catastrophic overfitting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.data import Granted
from siegebench.draws import Draws
from siegebench.train import Recipe
from siegebench.types import Positive, Share

from ._adversarial import AdversarialTraining, Ball, MinMax, against, right

RECIPE = Recipe()


@dataclass(frozen=True, kw_only=True)
class FastAT(AdversarialTraining):
    """Train on x + delta, where delta is one step of the fast gradient sign method from a random start (FGSM-RS).

    Wong, Rice, Kolter, "Fast is better than free: Revisiting adversarial training", ICLR 2020, arXiv 2001.03994.

        delta_0 ~ U(-eps, eps),    delta = Pi(delta_0 + alpha eps sign(grad CE(z(x + delta_0), y)))

    With a single step, training may suddenly overfit: the accuracy on such images stays high, that under PGD drops to
    zero. So the accuracy under PGD with 5 steps is measured after each epoch on one batch of training images. If it is
    lower than after the epoch before by more than `drop`, training ends with the weights of that epoch. The deployed
    network is an ordinary one with useful gradients.

    Random: the initial weights, the order and augmentation of the images, delta_0, and the batch that is checked.

    Cost: one more forward and backward pass per training step than standard training.

    Differs from the paper: the same batch is checked after each epoch, not the first batch of that epoch. A cosine
    schedule after a linear warm-up, not a triangular one; float32, not mixed precision.

    Attributes:
        eps: radius of the Linf ball.
        alpha: length of the step relative to eps; with 2 the authors observed overfitting.
        recipe: how the network is trained; `paper` is the authors' for CIFAR-10.
        batch_norm: mode of the network while delta is computed; `train` is the authors' choice.
        drop: training ends if the accuracy under PGD falls by more than this; 1 turns the check off.
        eps_warmup: fraction of the epochs over which eps grows linearly.
    """

    eps: Positive = 8 / 255
    alpha: Positive = 1.25
    recipe: Recipe = RECIPE
    batch_norm: Literal["eval", "train"] = "train"
    drop: Share = 0.2
    eps_warmup: Share = 0.0

    def problem(self, model: Classifier, data: Granted, seed: int) -> MinMax:
        ball = Ball(norm="linf", eps=self.eps, step=self.alpha * self.eps, steps=1)
        pgd = Ball(norm="linf", eps=self.eps, step=self.eps / 4, steps=5)
        few = data.train.select(Draws(seed, data.train.ids).order("checked")[: self.recipe.batch])
        before = 0.0
        kept: dict[str, Tensor] = {}

        def outer(model: Classifier, x: Tensor, y: Tensor, x_adv: Tensor, z_adv: Tensor) -> Tensor:
            return F.cross_entropy(z_adv, y, label_smoothing=self.recipe.smoothing)

        def overfitted(epoch: int) -> bool:
            nonlocal before, kept
            now = right(pgd, model.eval(), few, seed) / len(few)
            if now < before - self.drop:
                model.load_state_dict(kept)
                return True
            before, kept = now, {k: v.clone() for k, v in model.state_dict().items()}
            return False

        return MinMax(
            ball=ball,
            inner=lambda model, x, y: against(y),
            outer=outer,
            recipe=self.recipe,
            batch_norm=self.batch_norm,
            eps_warmup=self.eps_warmup,
            after=overfitted,
        )
