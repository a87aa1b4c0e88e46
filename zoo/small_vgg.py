"""A small VGG with batch normalisation and ELU, the network of several published backdoored checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from siegebench.classifier import ModelCard, Network
from siegebench.data import Size
from siegebench.errors import ModelError
from siegebench.train import Recipe

from ._checkpoint import Checkpointed

RECIPE = Recipe(epochs=10, lr=2e-3, augment="crop")
WIDTHS, DROPOUT = (32, 64, 128), (0.3, 0.4, 0.4)


class SmallVGG(nn.Module):
    """Three stages of two 3x3 convolutions, each with batch normalisation and ELU, then pooling and dropout; linear."""

    def __init__(self, num_classes: int, channels: int, height: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inside = channels
        for outside, dropout in zip(WIDTHS, DROPOUT, strict=True):
            for _ in range(2):
                layers += [nn.Conv2d(inside, outside, 3, padding=1), nn.BatchNorm2d(outside), nn.ELU()]
                inside = outside
            layers += [nn.MaxPool2d(2), nn.Dropout(dropout)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inside * (height // 8) * (width // 8), num_classes)

    def forward(self, x: Any) -> Any:
        return self.classifier(self.features(x).flatten(1))


@dataclass(frozen=True, kw_only=True)
class SmallVGGModel(Checkpointed):
    """The network of the backdoored checkpoints that belong to Zeng et al., "Adversarial unlearning of backdoors via
    implicit hypergradient", ICLR 2022. It has 0.3 M weights and takes images in [0, 1] as they are.

    Random: the initial weights of a network that is trained; the harness seeds them.

    Attributes:
        recipe: for training.

    Differs from the paper: the size of the last layer follows the size of the images, which must be 8 pixels or more.
    """

    recipe: Recipe = RECIPE

    def build(self, *, num_classes: int, size: Size, channels: int = 3) -> Network:
        height, width = (size, size) if isinstance(size, int) else size
        if min(height, width) < 8:
            raise ModelError(f"small_vgg: images of {width}x{height} pixels; it needs 8 or more in both directions")
        make = partial(SmallVGG, num_classes, channels, height, width)
        net = make()
        mean, std, source, digest = self.loaded(net, (0.0,) * channels, (1.0,) * channels)
        card = ModelCard(
            name="small_vgg", architecture="small VGG (32-64-128, ELU)", source=source, weights=digest,
            preprocessing={"mean": mean, "std": std},
        )  # fmt: skip
        return Network(net, num_classes=num_classes, mean=mean, std=std, card=card, rebuild=make).eval()
