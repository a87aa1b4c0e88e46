"""Images to poison and streams for their triggers."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from siegebench.classifier import Classifier, Network
from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.train import Recipe, accuracy, train
from siegebench.types import BackdoorAttack, Poisoned
from tests import victims

SHORT = Recipe(epochs=8, batch=32, lr=0.005, augment="none")


def random_set(n: int = 200, size: int = 16) -> ImageSet:
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, size, size), generator=g, dtype=torch.uint8)
    return ImageSet(images, torch.arange(n) % 5, 1000 + 7 * torch.arange(n), 5, "random")


def constant(value: float, n: int = 2, size: int = 32) -> Tensor:
    return torch.full((n, 3, size, size), value)


def draws(x: Tensor) -> Draws:
    return Draws(0, torch.arange(len(x)))


def small_net(seed: int = 0) -> Network:
    """Two convolutions for 8x8 images: a second of training on the scans of digits."""

    def rebuild() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, 1, 1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(128, 10),
        )  # fmt: skip

    return Network(rebuild(), num_classes=10, rebuild=rebuild).fresh(seed)


@cache
def clean_net() -> Classifier:
    """The network of 8x8 scans of digits, trained on clean images."""
    model = small_net()
    with torch.enable_grad():
        train(model, victims.tiny_digits()[0], SHORT, 0)
    return model


def victim_of(attack: BackdoorAttack) -> tuple[Classifier, Poisoned, float, float]:
    """(network trained on the poisoned 8x8 scans, the poisoned set, clean accuracy, attack success rate)."""
    data, test = victims.tiny_digits()[0], victims.tiny_digits()[3]
    material = attack.learn(data, 0, small_net(7)) if attack.learns else None
    poisoned, model = attack.poison(data, 0, material), small_net()
    train(model, poisoned.data, SHORT, 0)
    return model, poisoned, accuracy(model, test), victims.success_rate(model, attack, test, material)
