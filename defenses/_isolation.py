"""Isolating what a network learns first: losses that stay above a floor, and the images with the smallest loss."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.data import ImageSet
from siegebench.train import Recipe, predict, train

Floor = Literal["flooding", "sign"]
ISOLATION = Recipe(epochs=20, batch=64, optimiser="sgd", lr=0.1, weight_decay=1e-4, augment="none")


def floored(z: Tensor, y: Tensor, floor: Floor, gamma: float) -> Tensor:
    """|L - g| + g with the mean L of the cross-entropy l (`flooding`), or the mean of sign(l - g) l (`sign`)."""
    if floor == "flooding":
        return (F.cross_entropy(z, y) - gamma).abs() + gamma
    each = F.cross_entropy(z, y, reduction="none")
    return ((each.detach() - gamma).sign() * each).mean()


def train_above(model: Classifier, data: ImageSet, floor: Floor, gamma: float, recipe: Recipe, seed: int) -> None:
    """Train in place on a loss that is not to fall below gamma, so that only the easiest images are fitted."""

    def loss(z: Tensor, y: Tensor, x: Tensor, index: Tensor) -> Tensor:
        return floored(z, y, floor, gamma)

    train(model, data, recipe, seed, loss=loss)


def easiest(model: Classifier, data: ImageSet, share: float) -> Tensor:
    """Indices of a fraction of the images, those with the smallest cross-entropy; at least one. int64, on the CPU."""
    losses = F.cross_entropy(predict(model, data), data.labels, reduction="none")
    return losses.argsort(stable=True)[: max(1, round(share * len(data)))]


def without(data: ImageSet, index: Tensor) -> ImageSet:
    """The other images of a set."""
    kept = torch.ones(len(data), dtype=torch.bool)
    kept[index] = False
    return data.select(kept.nonzero().squeeze(1))
