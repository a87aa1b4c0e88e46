"""IBP training: train the network on the worst logits that its interval bounds allow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from siegebench.bounds import Ball, intervals, margins
from siegebench.classifier import Classifier
from siegebench.data import Granted
from siegebench.draws import Draws, derive_seed
from siegebench.traced import operations
from siegebench.train import Recipe, renew, train
from siegebench.types import Defense, Positive, Share

RECIPE = Recipe(epochs=40, batch=64, lr=1e-3, augment="none", weight_decay=0.0, warmup=0.02)


@dataclass(frozen=True, kw_only=True)
class IBPTraining(Defense):
    """min_theta kappa CE(z, y) + (1 - kappa) CE(z_worst, y), where z_worst are the worst logits in interval bounds.

    Gowal, Dvijotham, Stanforth, Bunel, Qin, Uesato, Arandjelovic, Mann, Kohli, "Scalable Verified Training for Provably
    Robust Image Classification", ICCV 2019, arXiv 1810.12715.

        z_worst,k = max over the bounds of z_k - z_y, with the last layer fused into the difference; z_worst,y = 0

    kappa falls from 1 and eps grows from 0, both linearly, after a fraction `start` of the steps and over a fraction
    `ramp`. The deployed network is an ordinary one. It is trained for the certifier `ibp`, and `crown` certifies it
    too. Networks with layers that cannot be bounded are refused.

    Random: the initial weights, and the order and augmentation of the images. Cost: about three times that of standard
    training.

    Differs from the paper: one cosine schedule of the learning rate instead of steps. Batch norms are bounded with
    their running statistics, of which the authors' networks have none. The elision of the last layer is for each class.

    Attributes:
        norm, eps: the ball. It may be larger than that of the certificates; the authors train with a larger one.
        kappa: weight of the clean loss in the end.
        start, ramp: fractions of all steps.
        recipe: how the network is trained.
    """

    trains: ClassVar[bool] = True
    adaptive: ClassVar[tuple[dict[str, Any], ...]] = ({"name": "pgd", "loss": "margin", "steps": 50, "restarts": 5},)

    norm: Literal["linf", "l2"] = "linf"
    eps: Positive = 8 / 255
    kappa: Share = 0.5
    start: Share = 0.1
    ramp: Share = 0.5
    recipe: Recipe = RECIPE

    def wrap(self, model: Classifier) -> Classifier:
        return model.fresh(0)  # the structure; `fit` trains the weights

    def fit(self, defended: Classifier, data: Granted, draws: Draws) -> None:
        seed = derive_seed(draws.seed, "ibp_training")
        renew(defended, seed)
        like = next(defended.parameters())
        images = data.train
        ops = operations(defended.eval(), images.pixels(slice(0, 2), like.dtype).to(like.device))
        steps = max(1, len(images) // self.recipe.batch) * self.recipe.epochs
        step, box = 0, defended.kind

        def loss(z: Tensor, y: Tensor, x: Tensor, index: Tensor) -> Tensor:
            nonlocal step
            grown = min(1.0, max(0.0, (step / steps - self.start) / max(self.ramp, 1e-9)))
            step += 1
            kappa = 1 - (1 - self.kappa) * grown
            clean = F.cross_entropy(z, y, label_smoothing=self.recipe.smoothing)
            if kappa == 1:
                return clean
            bounds = intervals(ops, Ball(x, self.norm, grown * self.eps, box.low, box.high))
            worst = -margins(ops, bounds, y).scatter(1, y[:, None], 0.0)
            return kappa * clean + (1 - kappa) * F.cross_entropy(worst, y)

        train(defended, images, self.recipe, seed, loss=loss)
