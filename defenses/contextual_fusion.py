"""Contextual fusion: a linear layer on the features of two frozen networks that were trained on different tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.data import Granted
from siegebench.draws import Draws, derive_seed
from siegebench.train import Recipe, renew, train
from siegebench.types import Count, Defense, ModelSource

from ._members import Concatenated, networks

RECIPE = Recipe(epochs=5)
SIDE = 224  # of the images, for a network that does not state it


@dataclass(frozen=True, kw_only=True)
class ContextualFusion(Defense):
    """z(x) = W [g_fg(x), g_bg(x)] + b, trained by min CE(z(x), y) + penalty ||W_fg||^2.

    Akumalla, Haney, Bazhenov, "Contextual fusion for adversarial robustness", 2020, arXiv 2011.09526. The foreground
    network is the model; the background network was trained on another task, such as the recognition of scenes. Both
    are frozen; only W and b are trained. g is the input of the last linear layer, W_fg the part of W for g_fg. Images
    made against the foreground network alone change g_bg less. A white-box attack differentiates both networks.

    Random: the order and augmentation of the images, and the weights of a background network that is trained here. W
    and b start at zero. Cost: both networks, once per image and epoch and at inference.

    Differs from the paper: a stand-in for its two ResNet-18, one trained on ImageNet and one on Places365, whose
    weights are not available in timm: any two networks. Without published weights, the background network is trained on
    the same images as the model, with its own recipe, and then has no other context. The training of the layer is not
    described in the sources that were available; the penalty is that of a follow-up (arXiv 2406.05120).

    Attributes:
        background: a model spec, as in a suite. A network with a fixed input size needs `input_size`.
        background_classes: number of classes of the background's published weights; by default that of the data.
        penalty: weight of ||W_fg||^2, for attacks that are expected on the foreground network.
        recipe: how W and b are trained.
    """

    trains: ClassVar[bool] = True
    adaptive: ClassVar[tuple[dict[str, Any], ...]] = (
        {"name": "pgd", "loss": "margin", "steps": 100},
        {"name": "apgd", "loss": "dlr"},
    )

    background: ModelSource
    background_classes: Count | None = None
    penalty: Annotated[float, Field(ge=0)] = 0.0
    recipe: Recipe = RECIPE

    def identity(self) -> dict[str, Any]:
        weights = self.background.identity()
        return {"background_weights": weights} if weights else {}

    def wrap(self, model: Classifier) -> Classifier:
        classes, side = self.background_classes or model.num_classes, model.card.preprocessing.get("input_size", SIDE)
        with torch.random.fork_rng(devices=[]):  # initialisers draw from the global generator
            background = self.background.built(classes, side, model.kind.channels)
        return Concatenated([model, background])

    def fit(self, defended: Classifier, data: Granted, draws: Draws) -> None:
        assert isinstance(defended, Concatenated)
        seed, images = derive_seed(draws.seed, "contextual_fusion"), data.train
        _, background = networks(defended)
        if not self.background.pretrained():
            renew(background, seed)
            train(background, images, getattr(self.background, "recipe", Recipe()), derive_seed(seed, "background"))
        defended.members.requires_grad_(False)

        def loss(z: Tensor, y: Tensor, x: Tensor, index: Tensor) -> Tensor:
            W_fg = defended.head.weight[:, : defended.widths[0]]
            return F.cross_entropy(z, y, label_smoothing=self.recipe.smoothing) + self.penalty * W_fg.square().sum()

        train(defended, images, self.recipe, seed, loss=loss)
