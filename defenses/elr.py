"""ELR: keep a network close to its early predictions, which it made before it memorises wrong labels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.data import Granted
from siegebench.draws import Draws, derive_seed
from siegebench.train import Recipe, train
from siegebench.types import Defense, Positive, Share


@dataclass(frozen=True, kw_only=True)
class EarlyLearningRegularization(Defense):
    """Train a new network on CE(z, y_i) + l log(1 - <t_i, p>), where t_i averages the predictions for image i so far.

    Liu, Niles-Weed, Razavian, Fernandez-Granda, "Early-Learning Regularization Prevents Memorization of Noisy Labels",
    NeurIPS 2020.

        p = softmax(z), clipped to [1e-4, 1 - 1e-4]
        t_i <- b t_i + (1 - b) p / sum(p)    each time image i is seen; 0 at first, without gradient

    Right labels are learnt first and wrong ones memorised later. The second term is smallest where p agrees with t_i.
    It was made for labels that are wrong at random. A trigger is learnt before the classes are, so it is no defense
    against backdoors that are learnt fast; it is on the backdoor track to show this.

    Random: the initial weights, the order and the augmentation of the images.

    Cost: one training, and one number for each image and class.

    Differs from the paper: one cosine schedule.

    Attributes:
        weight: l. The authors use 3 for CIFAR-10 with uniform noise, 1 with asymmetric noise, 7 for CIFAR-100.
        memory: b; the authors use 0.7 and 0.9.
        recipe: how the network is trained.
    """

    trains: ClassVar[bool] = True
    tracks: ClassVar[tuple[str, ...]] = ("backdoor",)

    weight: Positive = 3.0
    memory: Share = 0.7
    recipe: Recipe = field(default_factory=Recipe)

    def wrap(self, model: Classifier) -> Classifier:
        return model.fresh(0)  # the structure; `fit` trains the weights

    def fit(self, defended: Classifier, data: Granted, draws: Draws) -> None:
        images, seed, like = data.train, derive_seed(draws.seed, "elr"), next(defended.parameters())
        defended.load_state_dict(defended.fresh(derive_seed(seed, "weights")).state_dict())
        t = torch.zeros(len(images), defended.num_classes, dtype=like.dtype, device=like.device)

        def loss(z: Tensor, y: Tensor, x: Tensor, index: Tensor) -> Tensor:
            return self.loss(z, y, t, index.to(z.device))

        train(defended, images, self.recipe, seed, loss=loss)

    def loss(self, z: Tensor, y: Tensor, t: Tensor, index: Tensor) -> Tensor:
        """The loss of logits z [n, K] of the images `index`, whose targets in t [N, K] are updated first."""
        p = F.softmax(z, dim=1).clamp(1e-4, 1 - 1e-4)
        with torch.no_grad():
            t[index] = self.memory * t[index] + (1 - self.memory) * p / p.sum(dim=1, keepdim=True)
        agreement = (t[index] * p).sum(dim=1)
        return F.cross_entropy(z, y) + self.weight * (1 - agreement).log().mean()
