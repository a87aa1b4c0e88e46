"""ABL: isolate what a network learns too fast, train on the rest, and unlearn what was isolated."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import torch
import torch.nn.functional as F

from siegebench.classifier import Classifier
from siegebench.data import Granted, ImageSet
from siegebench.draws import Draws, derive_seed
from siegebench.train import Recipe, accuracy, train
from siegebench.types import Count, Defense, Positive, Share
from siegebench.types.base import lowered

from ._isolation import Floor, easiest, train_above, without

ISOLATION = Recipe(epochs=10, batch=64, optimiser="sgd", lr=0.1, weight_decay=1e-4, augment="none")


@dataclass(frozen=True, kw_only=True)
class AntiBackdoorLearning(Defense):
    """Train on a poisoned set without keeping its backdoor.

    Li, Lyu, Koren, Lyu, Li, Ma, "Anti-Backdoor Learning: Training Clean Models on Poisoned Data", NeurIPS 2021.

    1. Isolation: train a new network on a loss that keeps l_i, the cross-entropy of image i, from falling below g:
            sign      mean_i sign(l_i - g) l_i
            flooding  |L - g| + g,    L = mean_i l_i
       Triggers are learnt first, so the fraction `isolate` of the images with the smallest l_i is isolated.
    2. Continue training on the other images.
    3. Unlearning: ascend the cross-entropy of the isolated images.

    Step 3 ends when the accuracy on the images of step 2 has fallen by more than `guard`, with the weights of the epoch
    before, because gradient ascent can destroy a network in a few steps. The result depends on which images are
    isolated: the two losses isolate different images, and if the rate is low, none of these may be poisoned.

    Random: the initial weights, the order and the augmentation of the images.

    Cost: about one training.

    Differs from the paper: the guard; and batch norms keep their statistics in step 3, whose batches are poisoned. One
    cosine schedule in each of the steps 1 and 2.

    Attributes:
        floor: the loss of step 1; the authors offer both.
        gamma: g.
        isolate: fraction of the training set that is isolated; at least one image.
        isolation: how the network is trained in step 1.
        recipe: how it is trained in step 2.
        unlearning, unlearning_lr: epochs and learning rate of SGD in step 3. The authors use 5 and 5e-4, which does
            nothing on small sets.
        guard: largest loss of accuracy in step 3, as an absolute difference.
    """

    trains: ClassVar[bool] = True
    tracks: ClassVar[tuple[str, ...]] = ("backdoor",)

    floor: Floor = "flooding"
    gamma: Positive = 0.5
    isolate: Share = 0.01
    isolation: Recipe = ISOLATION
    recipe: Recipe = field(default_factory=Recipe)
    unlearning: Count = 20
    unlearning_lr: Positive = 5e-3
    guard: Share = 0.05

    def quick(self) -> Self:
        return replace(lowered(self), unlearning=1)

    def wrap(self, model: Classifier) -> Classifier:
        return model.fresh(0)  # the structure; `fit` trains the weights

    def fit(self, defended: Classifier, data: Granted, draws: Draws) -> None:
        images, seed = data.train, derive_seed(draws.seed, "abl")
        defended.load_state_dict(defended.fresh(derive_seed(seed, "weights")).state_dict())
        train_above(defended, images, self.floor, self.gamma, self.isolation, derive_seed(seed, "isolation"))
        isolated = easiest(defended, images, self.isolate)
        others = without(images, isolated)
        train(defended, others, self.recipe, derive_seed(seed, "training"))
        self.unlearn(defended, images.select(isolated), others, derive_seed(seed, "unlearning"))

    def unlearn(self, model: Classifier, isolated: ImageSet, others: ImageSet, seed: int) -> None:
        """Ascend the loss of the isolated images in eval mode, while the accuracy on the others allows it."""
        like, draws = next(model.parameters()), Draws(seed, isolated.ids)
        optimiser = torch.optim.SGD(model.parameters(), self.unlearning_lr, self.recipe.momentum)
        least = accuracy(model, others) - self.guard
        for epoch in range(self.unlearning):
            before = {k: v.clone() for k, v in model.state_dict().items()}
            for index in draws.order(f"epoch {epoch}").split(self.recipe.batch):
                x, y = isolated.pixels(index, like.dtype).to(like.device), isolated.labels[index].to(like.device)
                optimiser.zero_grad()
                (-F.cross_entropy(model(x), y)).backward()
                optimiser.step()
            if not accuracy(model, others) >= least:
                model.load_state_dict(before)
                break
        optimiser.zero_grad()
