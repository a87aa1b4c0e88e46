"""Plain convolutional networks, those of verified training: convolutions, ReLU and linear layers, nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from siegebench.classifier import ModelCard, Network
from siegebench.data import Size
from siegebench.errors import ModelError
from siegebench.train import Recipe

from ._checkpoint import Checkpointed

RECIPE = Recipe(epochs=15, lr=1e-3)
Convolution = tuple[int, int, int]  # channels, size of the kernel, stride
LAYOUTS: dict[str, tuple[tuple[Convolution, ...], tuple[int, ...]]] = {
    "small": (((16, 4, 2), (32, 4, 1)), (100,)),
    "medium": (((32, 3, 1), (32, 4, 2), (64, 3, 1), (64, 4, 2)), (512, 512)),
    "perceptron": ((), (256, 256)),
    "large": (((64, 3, 1), (64, 3, 1), (128, 3, 2), (128, 3, 1), (128, 3, 1)), (512,)),
}


def plain_cnn(layout: str, num_classes: int, channels: int, height: int, width: int) -> nn.Module:
    """The layers, each but the last followed by ReLU."""
    layers: list[nn.Module] = []
    inside, (convolutions, dense) = channels, LAYOUTS[layout]
    for outside, kernel, stride in convolutions:
        layers += [nn.Conv2d(inside, outside, kernel, stride), nn.ReLU()]
        inside = outside
    with torch.no_grad():
        features = nn.Sequential(*layers)(torch.zeros(1, channels, height, width)).numel()
    layers.append(nn.Flatten())
    for outside in dense:
        layers += [nn.Linear(features, outside), nn.ReLU()]
        features = outside
    return nn.Sequential(*layers, nn.Linear(features, num_classes))


@dataclass(frozen=True, kw_only=True)
class PlainCNN(Checkpointed):
    """The networks `small`, `medium` and `large` of Gowal et al., ICCV 2019, and `perceptron`: no batch norm,
    no padding.

    Their layers can be bounded (`ibp`, `crown`), and nothing in them makes bounds wide. Images in [0, 1] are centred at
    1/2 and scaled by 4.

    Random: the initial weights; the harness seeds them.

    Differs from the paper: the normalisation is the same for all data. The size of the first linear layer follows the
    size of the images, which must be 16 pixels or more.

    Attributes:
        layout: `small` has 0.5 M weights for images of 32 pixels, `medium` 1.2 M, `large` 5.7 M; `perceptron`, which is
            ours, has no convolutions and 0.9 M.
        recipe: for training.
    """

    layout: Literal["small", "medium", "large", "perceptron"] = "small"
    recipe: Recipe = RECIPE

    def build(self, *, num_classes: int, size: Size, channels: int = 3) -> Network:
        height, width = (size, size) if isinstance(size, int) else size
        if min(height, width) < 16:
            raise ModelError(f"plain_cnn: images of {width}x{height} pixels; it needs 16 or more in both directions")
        make = partial(plain_cnn, self.layout, num_classes, channels, height, width)
        net = make()
        mean, std, source, digest = self.loaded(net, (0.5,) * channels, (0.25,) * channels)
        details: dict[str, Any] = {"mean": mean, "std": std}
        card = ModelCard(
            name="plain_cnn", architecture=f"plain CNN ({self.layout})", source=source, weights=digest,
            preprocessing=details,
        )  # fmt: skip
        return Network(net, num_classes=num_classes, mean=mean, std=std, card=card, rebuild=make).eval()
