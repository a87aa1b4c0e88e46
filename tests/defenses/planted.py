"""A network with a backdoor in one known channel, and images that do not activate it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from siegebench import registry
from siegebench.classifier import Classifier, Network
from siegebench.data import Granted, ImageSet
from siegebench.draws import Draws
from siegebench.types import Defense

CHANNELS, BAD = 8, 2
ONE = Draws(0, torch.zeros(1, dtype=torch.long))


def net() -> nn.Sequential:
    """Two channels see red and green, the classes; channel BAD sees blue and means class 0; the others are faint."""
    conv, norm = nn.Conv2d(3, CHANNELS, 3, 1, 1, bias=False), nn.BatchNorm2d(CHANNELS, momentum=0.0)
    linear = nn.Linear(CHANNELS, 2)
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[:, :2, 1, 1] = 0.5
        conv.weight[0, :, 1, 1] = torch.tensor([1.0, 0.0, 0.0])
        conv.weight[1, :, 1, 1] = torch.tensor([0.0, 1.0, 0.0])
        conv.weight[BAD, :, 1, 1] = torch.tensor([0.0, 0.0, 10.0])
        norm.bias[BAD] = -2.0  # the blue 0.2 of a clean image is just not enough
        linear.weight.zero_()
        linear.weight[0, 0] = linear.weight[1, 1] = 10.0
        linear.weight[0, BAD] = 20.0
        linear.bias.zero_()
    return nn.Sequential(conv, norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)


def model() -> Network:
    return Network(net(), num_classes=2, rebuild=net).eval()


def data(n: int = 40) -> ImageSet:
    """Red images are class 0, green ones class 1; all have the blue 0.2."""
    labels = torch.arange(n) % 2
    x = (40 * torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(0))).round()
    x[torch.arange(n), labels] += 120
    x[:, 2] = 51
    return ImageSet(x.to(torch.uint8), labels, torch.arange(n), 2, "planted")


def stamped(x: Tensor) -> Tensor:
    """The trigger: a blue square of 3x3 pixels."""
    out = x.clone()
    out[:, 2, -3:, -3:] = 1.0
    return out


@torch.no_grad()
def success(classifier: Classifier) -> float:
    """Share of the triggered images of class 1 that are classified as 0."""
    images = data()
    x = images.pixels((images.labels == 1).nonzero().squeeze(1))
    return float((classifier(stamped(x)).argmax(dim=1) == 0).double().mean())


def granted(*sees: str) -> Granted:
    return Granted("test", sees, train=data, clean=data, val=data)


def repaired(name: str, *sees: str, **parameters: object) -> tuple[Network, Classifier]:
    """(the backdoored network, the repaired one)"""
    before = model()
    entry = registry.build(Defense, {"name": name, **parameters})
    return before, entry.apply(copy.deepcopy(before), granted(*sees), ONE)
