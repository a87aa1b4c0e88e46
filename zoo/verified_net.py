"""Small networks of the verification literature, with their published weights or trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siegebench.classifier import ModelCard, Network
from siegebench.data import Size
from siegebench.errors import ModelError
from siegebench.train import Recipe

from ._checkpoint import Channels, Checkpointed

RECIPE = Recipe(epochs=15, lr=1e-3)
Convolution = tuple[int, int, int, int]  # channels, size of the kernel, stride, padding


def _convolutional(convolutions: list[Convolution], dense: tuple[int, ...], classes: int, x: Tensor) -> nn.Module:
    """Convolutions, then linear layers, with ReLU between all of them; `x` is an image, for its size."""
    layers: list[nn.Module] = []
    inside = x.shape[1]
    for outside, kernel, stride, padding in convolutions:
        layers += [nn.Conv2d(inside, outside, kernel, stride, padding), nn.ReLU()]
        inside = outside
    layers.append(nn.Flatten())
    with torch.no_grad():
        width = nn.Sequential(*layers)(x).shape[1]
    for outside in dense:
        layers += [nn.Linear(width, outside), nn.ReLU()]
        width = outside
    return nn.Sequential(*layers, nn.Linear(width, classes))


class _Block(nn.Module):
    """Residual block without batch norm."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1)
        self.shortcut = nn.Sequential(*([nn.Conv2d(inside, outside, 1, stride)] if stride > 1 else []))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x))


class _ResNet(nn.Module):
    """One or two stages of two blocks, without batch norm."""

    def __init__(self, planes: int, stages: int, classes: int, x: Tensor) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(x.shape[1], planes, 3, 2, 1)
        width = 2 * planes
        self.layer1 = nn.Sequential(_Block(planes, width, 2), _Block(width, width, 1))
        self.layer2 = nn.Sequential(*([_Block(width, width, 2), _Block(width, width, 1)] if stages == 2 else []))
        with torch.no_grad():
            flat = self.layer2(self.layer1(self.conv1(x))).flatten(1).shape[1]
        self.linear1, self.linear2 = nn.Linear(flat, 100), nn.Linear(100, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(F.relu(self.conv1(x))))
        logits: Tensor = self.linear2(F.relu(self.linear1(x.flatten(1))))
        return logits


@dataclass(frozen=True)
class _Form:
    """Makes the layers for a number of classes and an image; normalisation of the published weights."""

    make: Callable[[int, Tensor], nn.Module]
    mean: Channels = (0.0,)
    std: Channels = (1.0,)


def _plain(convolutions: list[Convolution], *dense: int) -> Callable[[int, Tensor], nn.Module]:
    return partial(_convolutional, convolutions, dense)


def _residual(planes: int, stages: int) -> Callable[[int, Tensor], nn.Module]:
    return partial(_ResNet, planes, stages)


OVAL = (0.485, 0.456, 0.406), (0.225, 0.225, 0.225)
CIFAR = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
FORMS = {
    "cnn_a": _Form(
        _plain([(16, 4, 2, 1), (32, 4, 2, 1)], 100),
        mean=(125.3 / 255, 123.0 / 255, 113.9 / 255),
        std=(63.0 / 255, 62.1 / 255, 66.7 / 255),
    ),
    "oval_deep": _Form(_plain([(8, 4, 2, 1), (8, 3, 1, 1), (8, 3, 1, 1), (8, 4, 2, 1)], 100), *OVAL),
    "marabou_medium": _Form(_plain([(16, 4, 2, 0), (32, 4, 2, 0)], 128, 64)),
    "madry_tiny": _Form(_plain([(4, 5, 2, 2), (8, 5, 2, 2)], 128)),
    "resnet2b": _Form(_residual(8, 1), *CIFAR),
    "resnet4b": _Form(_residual(16, 2), *CIFAR),
}


def layers(architecture: str, num_classes: int, channels: int, height: int, width: int) -> nn.Module:
    """The untrained layers of one of `FORMS`."""
    return FORMS[architecture].make(num_classes, torch.zeros(1, channels, height, width))


@dataclass(frozen=True, kw_only=True)
class VerifiedNet(Checkpointed):
    """A network on which verifiers are compared: small enough that its bounds can be computed.

    `cnn_a`: Dathathri et al., NeurIPS 2020, arXiv 2010.11645, trained adversarially. `oval_deep`: Lu, Kumar, ICLR 2020,
    arXiv 1912.01329, trained with the bounds of Wong, Kolter, ICML 2018. `resnet2b`, `resnet4b`: VNN-COMP 2021,
    arXiv 2109.00498, trained adversarially at 2/255. `marabou_medium`: of the same competition, plainly trained.
    `madry_tiny`: trained adversarially on MNIST. The published weights are in the repository of alpha-beta-CROWN.

    Random: the initial weights of a network that is trained; the harness seeds them.

    Attributes:
        architecture: one of the above; it also says how images are normalised.
        recipe: for training.
    """

    architecture: Literal["cnn_a", "oval_deep", "marabou_medium", "madry_tiny", "resnet2b", "resnet4b"] = "cnn_a"
    recipe: Recipe = RECIPE

    def build(self, *, num_classes: int, size: Size, channels: int = 3) -> Network:
        height, width = (size, size) if isinstance(size, int) else size
        if min(height, width) < 16:
            raise ModelError(f"verified_net: images of {width}x{height} pixels; it needs 16 or more in both directions")
        form = FORMS[self.architecture]
        if len(form.mean) not in (1, channels):
            raise ModelError(f"{self.architecture}: images of {channels} channels; it needs {len(form.mean)}")
        make = partial(layers, self.architecture, num_classes, channels, height, width)
        net = make()
        mean, std, source, digest = self.loaded(
            net, form.mean * (channels // len(form.mean)), form.std * (channels // len(form.std))
        )
        details: dict[str, Any] = {"mean": mean, "std": std}
        card = ModelCard(
            name=self.architecture, architecture=self.architecture, source=source, weights=digest, preprocessing=details
        )
        return Network(net, num_classes=num_classes, mean=mean, std=std, card=card, rebuild=make).eval()
