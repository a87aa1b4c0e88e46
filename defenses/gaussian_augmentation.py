"""Gaussian augmentation: train the network on images with Gaussian noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.data import Granted
from siegebench.draws import Draws, derive_seed
from siegebench.train import Recipe, renew, train
from siegebench.types import Defense, Positive

RECIPE = Recipe()


@dataclass(frozen=True, kw_only=True)
class GaussianAugmentation(Defense):
    """min_theta E CE(z_theta(x + eta), y) with eta ~ N(0, sigma^2 I): the training for randomised smoothing.

    Cohen, Rosenfeld, Kolter, "Certified Adversarial Robustness via Randomized Smoothing", ICML 2019, section 3.3,
    arXiv 1902.02918; Lecuyer et al., IEEE S&P 2019.

    Each image gets new noise in each epoch, in the box of the images, not clipped. The deployed network is an ordinary
    one without noise. It is trained for the certifier `randomized_smoothing` with the same sigma; alone it resists
    attacks little.

    Random: the initial weights, the order and augmentation of the images, and the noise. Cost: that of standard
    training.

    Differs from the paper: one cosine schedule instead of a piecewise constant one.

    Attributes:
        sigma: standard deviation of the noise, in the units of the images.
        recipe: how the network is trained; the preset `paper` is the authors' for CIFAR-10.
    """

    trains: ClassVar[bool] = True
    adaptive: ClassVar[tuple[dict[str, Any], ...]] = ({"name": "pgd", "loss": "margin", "steps": 50, "restarts": 5},)

    sigma: Positive = 0.25
    recipe: Recipe = RECIPE

    def wrap(self, model: Classifier) -> Classifier:
        return model.fresh(0)  # the structure; `fit` trains the weights

    def fit(self, defended: Classifier, data: Granted, draws: Draws) -> None:
        seed = derive_seed(draws.seed, "gaussian_augmentation")
        noise = Draws(derive_seed(seed, "noise"), data.train.ids)

        def noisy(x: Tensor, y: Tensor, index: Tensor, epoch: int) -> Tensor:
            eta = noise[index].normal(tuple(x.shape[1:]), epoch)
            return x + self.sigma * eta.to(x)

        renew(defended, seed)
        train(defended, data.train, self.recipe, seed, images=noisy)
