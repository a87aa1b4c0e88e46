"""Two small networks of the literature on gradient leakage: a LeNet with sigmoids, and a perceptron."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import nn

from siegebench.classifier import ModelCard, Network
from siegebench.data import Size
from siegebench.errors import ModelError
from siegebench.train import Recipe
from siegebench.types import Count, ModelSource, Positive

RECIPE = Recipe(epochs=15, lr=2e-3, augment="none", weight_decay=0.0)
Start = Literal["uniform", "default"]


def lenet(start: Start, bound: float, num_classes: int, channels: int, height: int, width: int) -> nn.Module:
    """Three convolutions with sigmoids, then one linear layer; all weights U(-bound, bound) if `start` says so."""
    layers: list[nn.Module] = []
    inside = channels
    for stride in (2, 2, 1):
        layers += [nn.Conv2d(inside, 12, 5, stride, padding=2), nn.Sigmoid()]
        inside = 12
    with torch.no_grad():
        features = nn.Sequential(*layers)(torch.zeros(1, channels, height, width)).numel()
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, num_classes))
    if start == "uniform":
        for p in net.parameters():
            nn.init.uniform_(p, -bound, bound)
    return net


def perceptron(hidden: int, num_classes: int, channels: int, height: int, width: int) -> nn.Module:
    """A linear layer on the pixels, ReLU, and a linear layer; both have biases."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(channels * height * width, hidden), nn.ReLU(), nn.Linear(hidden, num_classes)
    )


@dataclass(frozen=True, kw_only=True)
class _Net(ModelSource):
    """A network without normalisation that is trained on the data of the suite."""

    recipe: Recipe = RECIPE

    @abstractmethod
    def net(self, num_classes: int, channels: int, height: int, width: int) -> nn.Module:
        """The untrained layers."""

    def build(self, *, num_classes: int, size: Size, channels: int = 3) -> Network:
        height, width = (size, size) if isinstance(size, int) else size
        if min(height, width) < 8:
            raise ModelError(f"images of {width}x{height} pixels; it needs 8 or more in both directions")
        make = partial(self.net, num_classes, channels, height, width)
        name = type(self).__name__
        card = ModelCard(name=name, architecture=name)
        mean, std = (0.0,) * channels, (1.0,) * channels
        return Network(make(), num_classes=num_classes, mean=mean, std=std, card=card, rebuild=make).eval()


@dataclass(frozen=True, kw_only=True)
class LeNetSigmoid(_Net):
    """The network of Deep Leakage from Gradients: three 5x5 convolutions with 12 channels and sigmoids, then linear.

    Strides are 2, 2 and 1. Sigmoids have a second derivative that an attacker on gradients can follow. The uniform
    start is much larger than the default of PyTorch, and gradients of the pixels are then large.

    Random: the initial weights; the harness seeds them.

    Differs from the paper: any number of classes and size of the images.

    Attributes:
        start: initial weights and biases: `uniform` in (-bound, bound), or `default` of PyTorch.
        bound: of the uniform start.
        recipe: for training.
    """

    start: Start = "uniform"
    bound: Positive = 0.5

    def net(self, num_classes: int, channels: int, height: int, width: int) -> nn.Module:
        return lenet(self.start, self.bound, num_classes, channels, height, width)


@dataclass(frozen=True, kw_only=True)
class Perceptron(_Net):
    """One hidden layer of ReLUs on the pixels. The gradient of its first layer contains the image itself.

    Random: the initial weights; the harness seeds them.

    Attributes:
        hidden: units of the hidden layer.
        recipe: for training.
    """

    hidden: Count = 256

    def net(self, num_classes: int, channels: int, height: int, width: int) -> nn.Module:
        return perceptron(self.hidden, num_classes, channels, height, width)
