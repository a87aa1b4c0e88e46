"""Fully connected networks: a linear classifier, or several hidden layers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from siegebench.classifier import ModelCard, Network
from siegebench.data import Size
from siegebench.train import Recipe
from siegebench.types import Count, ModelSource

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}
RECIPE = Recipe(epochs=15, lr=2e-3, augment="none")


def mlp(hidden: int, width: int, activation: str, num_classes: int, inputs: int) -> nn.Module:
    """Linear layers with an activation after each but the last."""
    layers: list[nn.Module] = [nn.Flatten()]
    for _ in range(hidden):
        layers += [nn.Linear(inputs, width), ACTIVATIONS[activation]()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, num_classes))


@dataclass(frozen=True, kw_only=True)
class MLP(ModelSource):
    """A linear classifier (`hidden: 0`) or a network of fully connected layers; pixels are centred at 1/2, scaled by 4.

    Random: the initial weights; the harness seeds them.

    Attributes:
        hidden: number of hidden layers.
        width: units of each.
        activation: after each hidden layer.
        recipe: for training.
    """

    hidden: Annotated[int, Field(ge=0, strict=True)] = 1
    width: Count = 128
    activation: Literal["relu", "tanh"] = "relu"
    recipe: Recipe = RECIPE

    def build(self, *, num_classes: int, size: Size, channels: int = 3) -> Network:
        pixels = size**2 if isinstance(size, int) else math.prod(size)
        make = partial(mlp, self.hidden, self.width, self.activation, num_classes, channels * pixels)
        mean, std = (0.5,) * channels, (0.25,) * channels
        card = ModelCard(name="mlp", architecture=f"MLP, {self.hidden} hidden layers of {self.width}")
        return Network(make(), num_classes=num_classes, mean=mean, std=std, card=card, rebuild=make).eval()
