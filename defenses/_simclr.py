"""SimCLR: features that are learnt from images without labels, for defenses that do not trust the labels."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from siegebench import contrastive
from siegebench.classifier import Classifier, Wrapped
from siegebench.data import ImageSet
from siegebench.train import Recipe, train

FEATURES = Recipe(epochs=30, batch=128, optimiser="sgd", lr=0.2, weight_decay=1e-4)
HEAD = Recipe(epochs=10, batch=64, lr=2e-3, weight_decay=0.0, augment="none")


def pretrain(model: Classifier, data: ImageSet, recipe: Recipe, seed: int, temperature: float = 0.5) -> None:
    """Train the features of a network in place, without the labels.

    Chen, Kornblith, Norouzi, Hinton, "A Simple Framework for Contrastive Learning of Visual Representations", ICML
    2020. The views are drawn here: `recipe.augment` says only whether images are mirrored.
    """
    head = contrastive.head_of(model, "simclr", seed, temperature)
    contrastive.pretrain(model, head, data, recipe, seed)


class Probe(Wrapped):
    """A network of which only the last linear layer is trained; the rest stays in eval mode."""

    def train(self, mode: bool = True) -> Probe:
        super().train(False)
        return self


def fit_head(
    model: Classifier, data: ImageSet, recipe: Recipe, loss: Callable[[Tensor, Tensor], Tensor], seed: int
) -> None:
    """Train the last linear layer of a network in place, on loss(logits, labels)."""
    model.requires_grad_(False)
    contrastive.last_linear(model).requires_grad_(True)
    train(Probe(model), data, recipe, seed, loss=lambda z, y, x, index: loss(z, y))
    model.requires_grad_(True)


def symmetric(z: Tensor, y: Tensor, alpha: float = 0.1, beta: float = 1.0) -> Tensor:
    """alpha CE(p, y) + beta CE(y, p) for each image, [n]; Wang et al., "Symmetric Cross Entropy ...", ICCV 2019."""
    p = F.softmax(z, dim=1).clamp(1e-7, 1)
    target = F.one_hot(y, z.shape[1]).to(z).clamp(1e-4, 1)
    return alpha * F.cross_entropy(z, y, reduction="none") - beta * (p * target.log()).sum(dim=1)
