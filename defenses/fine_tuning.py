"""Fine-tuning: the baseline that every repair of a backdoored model has to exceed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from siegebench.classifier import Classifier
from siegebench.data import Granted
from siegebench.draws import Draws, derive_seed
from siegebench.train import Augment, Recipe, train
from siegebench.types import Count, Defense, Positive, Share


@dataclass(frozen=True, kw_only=True)
class FineTuning(Defense):
    """Continue training all weights on the small clean budget with SGD and a cosine schedule.

    The result depends on the learning rate more than on anything else: with a low rate the backdoor remains, with a
    high rate accuracy is lost. Use one rate for a whole board. Choose it by the accuracy on held-out clean images,
    never by the attack success. Random: the order of the images and their augmentation.

    Attributes:
        lr: peak learning rate.
        momentum, weight_decay: of SGD (Nesterov).
        epochs, batch, augment: as in training.

    Differs from the paper: no difference in kind; the common benchmark uses lr 0.01, batch 256 and 100 epochs.
    """

    trains: ClassVar[bool] = True
    tracks: ClassVar[tuple[str, ...]] = ("backdoor",)

    lr: Positive = 0.03
    momentum: Share = 0.9
    weight_decay: float = 5e-4
    epochs: Count = 100
    batch: Count = 64
    augment: Augment = "crop"

    def wrap(self, model: Classifier) -> Classifier:
        return model

    def fit(self, defended: Classifier, data: Granted, draws: Draws) -> None:
        recipe = Recipe(
            epochs=self.epochs, batch=self.batch, optimiser="sgd", lr=self.lr, momentum=self.momentum,
            weight_decay=self.weight_decay, augment=self.augment,
        )  # fmt: skip
        defended.requires_grad_(True)
        train(defended, data.clean, recipe, derive_seed(draws.seed, "fine-tuning"))
