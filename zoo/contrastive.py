"""Networks whose features are learnt without labels; a linear layer on top is fitted to a few labelled images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.contrastive import Method, features, head_of, last_linear, pretrain
from siegebench.data import ImageSet, Size, stratified
from siegebench.draws import derive_seed
from siegebench.errors import ConfigError
from siegebench.train import Recipe
from siegebench.types import Count, ModelSource, Positive

RECIPE = Recipe(epochs=30, batch=128, lr=1e-3)


def fit_probe(h: Tensor, y: Tensor, num_classes: int, decay: float) -> tuple[Tensor, Tensor]:
    """The weight [K, d] and bias [K] of a linear layer on features h [n, d], float64: logistic regression.

    min CE(W s + b, y) + decay/2 |W|^2 on the standardised features s = (h - mean) / std; the layer returned takes h
    itself. The problem is convex, so nothing depends on a start.
    """
    h = h.double()
    mean, std = h.mean(dim=0), h.std(dim=0, correction=0)
    std = torch.where(std > 1e-9, std, 1.0)  # a feature that never changes stays at zero
    s = (h - mean) / std
    weight = torch.zeros(num_classes, h.shape[1], dtype=h.dtype, requires_grad=True)
    bias = torch.zeros(num_classes, dtype=h.dtype, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=300, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = F.cross_entropy(s @ weight.T + bias, y) + decay / 2 * weight.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    outer = weight.detach() / std
    return outer, bias.detach() - outer @ mean


@dataclass(frozen=True, kw_only=True)
class Contrastive(ModelSource):
    """An encoder that is trained on pairs of views, without labels, and a linear probe on its features.

    Chen, Kornblith, Norouzi, Hinton, "A Simple Framework for Contrastive Learning of Visual Representations", ICML
    2020, arXiv 2002.05709.

    1. Two random views of each image: a crop, resized; colours changed; sometimes grey. The features of both views are
       projected, and the loss brings the two projections together (`siegebench.contrastive` has the losses).
    2. The projection is dropped. The last linear layer of the network is fitted to the standardised features of `probe`
       labelled images. Encoder and probe are a classifier like any other.

    Random: the initial weights, the order of the images, the views, and which images are labelled.

    Cost: two passes for each image and epoch.

    Differs from the paper: the views change the balance of the colours instead of their hue, and are not blurred. The
    labelled images are some of those of the encoder, so that some of them are poisoned if the training set is. If they
    are many, a backdoor may get into the probe alone, and not into the encoder (docs/replications/ctrl.md).

    Attributes:
        network: the architecture; its weights are trained here.
        method: `simclr`; `simsiam` (Chen, He, CVPR 2021) or `byol` (Grill et al., NeurIPS 2020), without negative
            pairs.
        temperature: of `simclr`.
        recipe: how the encoder is trained; its `augment` says only whether images are mirrored.
        probe: number of labelled images, in the proportions of the classes.
        decay: of the weights of the probe.
    """

    network: ModelSource
    method: Method = "simclr"
    temperature: Positive = 0.5
    recipe: Recipe = RECIPE
    probe: Count = 600
    decay: Positive = 1e-3

    def __post_init__(self) -> None:
        if self.network.pretrained():
            raise ConfigError("contrastive trains its network; give one without published weights")

    def identity(self) -> dict[str, Any]:
        return self.network.identity()

    def build(self, *, num_classes: int, size: Size, channels: int = 3) -> Classifier:
        model = self.network.built(num_classes, size, channels)
        last_linear(model)  # refuses a network without one before anything is trained
        model.card = replace(model.card, name=f"{self.method} {model.card.name}")
        return model

    def train(self, model: Classifier, data: ImageSet, seed: int) -> None:
        head = head_of(model, self.method, seed, self.temperature)
        pretrain(model, head, data, self.recipe, derive_seed(seed, "features"))
        labelled = data.select(stratified(data, min(self.probe, len(data)), derive_seed(seed, "probe")))
        weight, bias = fit_probe(features(model, labelled), labelled.labels, data.num_classes, self.decay)
        layer = last_linear(model)
        with torch.no_grad():
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
