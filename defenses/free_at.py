"""Free adversarial training: one backward pass updates the weights and the perturbation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.data import Granted
from siegebench.draws import Draws, derive_seed
from siegebench.train import Recipe, renew, train
from siegebench.types import Count, Defense, Positive

RECIPE = Recipe(epochs=5)


@dataclass(frozen=True, kw_only=True)
class FreeAT(Defense):
    """Replay each batch m times; each backward pass gives the gradient of the weights and that of the perturbation.

    Shafahi, Najibi, Ghiasi, Xu, Dickerson, Studer, Davis, Taylor, Goldstein, "Adversarial Training for Free!", NeurIPS
    2019, arXiv 1904.12843.

        theta <- theta - lr grad_theta CE(z(x + delta), y)
        delta <- Pi(delta + eps sign(grad_delta CE(z(x + delta), y)))

    delta [batch, C, H, W] starts at zero and is kept from batch to batch, so the next images begin with the
    perturbation of the last ones. The deployed network is an ordinary one with useful gradients.

    Random: the initial weights, the order and augmentation of the images.

    Cost: m epochs of standard training for each epoch of the recipe.

    Differs from the paper: one cosine schedule instead of a piecewise constant one.

    Attributes:
        eps: radius of the Linf ball, and length of the step of delta.
        replays: m; the authors use 8 on CIFAR-10 and 4 on ImageNet.
        recipe: how the network is trained; its epochs count the batches, not their replays. `paper` is the recipe of
            Wong, Rice, Kolter (ICLR 2020) for free training on CIFAR-10.
    """

    trains: ClassVar[bool] = True
    adaptive: ClassVar[tuple[dict[str, Any], ...]] = ({"name": "pgd", "loss": "margin", "steps": 50, "restarts": 5},)

    eps: Positive = 8 / 255
    replays: Count = 4
    recipe: Recipe = RECIPE

    def wrap(self, model: Classifier) -> Classifier:
        return model.fresh(0)  # the structure; `fit` trains the weights

    def fit(self, defended: Classifier, data: Granted, draws: Draws) -> None:
        seed = derive_seed(draws.seed, "pgd_at")  # the weights and the order of the other adversarial trainings
        renew(defended, seed)
        delta = torch.zeros(self.recipe.batch, *data.train.shape)
        x_clean = x_adv = torch.empty(0)

        def perturbed(x: Tensor, y: Tensor, index: Tensor, epoch: int) -> Tensor:
            nonlocal delta, x_clean, x_adv
            delta = delta.to(x)
            x_clean = x
            x_adv = (x + delta[: len(x)]).clamp(0, 1).requires_grad_(True)
            return x_adv

        def ascend() -> None:
            assert x_adv.grad is not None
            moved = (delta[: len(x_adv)] + self.eps * x_adv.grad.sign()).clamp(-self.eps, self.eps)
            delta[: len(x_adv)] = (x_clean + moved).clamp(0, 1) - x_clean

        train(defended, data.train, self.recipe, seed, images=perturbed, gradients=ascend, replays=self.replays)
