"""The encouraging loss: images that are classified well still contribute to the gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.data import Granted
from siegebench.draws import Draws, derive_seed
from siegebench.train import Recipe, renew, train
from siegebench.types import Defense, Share

RECIPE = Recipe()


@dataclass(frozen=True, kw_only=True)
class EncouragingLoss(Defense):
    """Standard training with the loss -log p_y + B(p_y), where B(p) = log(1 - p) rewards a high probability p.

    Zhao et al., "Well-classified Examples are Underestimated in Classification with Deep Neural Networks", AAAI
    2022, arXiv 2110.06537.

    The gradient of the cross-entropy vanishes when p_y is near 1; that of -log p_y + log(1 - p_y) in the logit z_y is
    -1 up to p_y = 1 - 1e-5, where the bonus ends, so margins grow. Above `limit`, B is replaced by its tangent. Larger
    logits may saturate the softmax, which stops attacks on the cross-entropy without making the network more robust:
    attacks on differences of logits count.

    Random: the initial weights, the order and augmentation of the images.

    Differs from the paper: only the loss is taken; architectures and recipes are those of the suite. Label smoothing of
    the recipe is not used.

    Attributes:
        limit: LE, the probability from which B is linear: 1 is the full bonus, 0.75 is recommended by the authors, 0.5
            is their cautious choice.
        recipe: how the network is trained.
    """

    trains: ClassVar[bool] = True
    adaptive: ClassVar[tuple[dict[str, Any], ...]] = (
        {"name": "pgd", "loss": "margin", "steps": 50},
        {"name": "apgd", "loss": "dlr"},
    )

    limit: Share = 1.0
    recipe: Recipe = RECIPE

    def wrap(self, model: Classifier) -> Classifier:
        return model.fresh(0)  # the structure; `fit` trains the weights

    def fit(self, defended: Classifier, data: Granted, draws: Draws) -> None:
        seed = derive_seed(draws.seed, "encouraging_loss")
        renew(defended, seed)
        train(defended, data.train, self.recipe, seed, loss=lambda z, y, x, index: encouraging(z, y, self.limit).mean())


def encouraging(z: Tensor, y: Tensor, limit: float) -> Tensor:
    """-log p_y + B(p_y) of each image, [n], for logits z [n, K] and labels y [n]."""
    log_p = z.log_softmax(dim=1).gather(1, y[:, None]).squeeze(1)
    p = log_p.exp()
    bonus = (1 - p).clamp(min=1e-5).log()
    if limit < 1:
        tangent = math.log(1 - limit) - (p - limit) / (1 - limit)
        bonus = torch.where(p < limit, bonus, tangent)
    return bonus - log_p
