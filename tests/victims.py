"""Small networks with and without a backdoor, trained once a run of the tests and shared by the backdoor tests."""

from __future__ import annotations

from functools import cache
from typing import Any

import timm
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from siegebench import artifacts, registry
from siegebench.classifier import Classifier, Network
from siegebench.data import Granted, ImageSet, split_clean
from siegebench.draws import Draws
from siegebench.store import Store
from siegebench.train import Recipe, train
from siegebench.types import BackdoorAttack, Material, Poisoned
from tests import kit

RECIPE = Recipe(epochs=8, batch=64, augment="none")
ONE = Draws(0, torch.zeros(1, dtype=torch.long))  # what model-level and training entries are given


@cache
def digits() -> tuple[ImageSet, ImageSet, ImageSet, ImageSet]:
    """(train, clean fit, clean val, test), 32x32."""
    source: Any = registry.build("dataset", "digits")
    return (*split_clean(source.load("train"), 0.1, 0), source.load("test"))


@cache
def tiny_digits() -> tuple[ImageSet, ImageSet, ImageSet, ImageSet]:
    """The same scans at their own 8x8: seconds where 32x32 takes a minute."""
    scans, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(scans).view(-1, 1, 8, 8) * (255 / 16)
    full = ImageSet(
        x.round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous(),
        torch.from_numpy(labels).long(), torch.arange(len(x)), 10, "digits 8x8",
    )  # fmt: skip
    order = Draws(0, full.ids).order("split")
    return (*split_clean(full.select(order[:1400].sort().values), 0.12, 0), full.select(order[1400:].sort().values))


def byobnet(seed: int = 0) -> Network:
    def rebuild() -> nn.Module:
        return timm.create_model("test_byobnet", num_classes=10)

    return Network(rebuild(), num_classes=10, rebuild=rebuild).fresh(seed)


def tiny_net(seed: int = 0) -> Network:
    """Three convolutions with batch norm, for 8x8."""

    def rebuild() -> nn.Module:
        layers: list[nn.Module] = []
        for i, (c, d) in enumerate(((3, 32), (32, 64), (64, 64))):
            layers += [nn.Conv2d(c, d, 3, 1, 1), nn.BatchNorm2d(d), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if i == 1 else []
        return nn.Sequential(
            *layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10)
        )

    return Network(rebuild(), num_classes=10, rebuild=rebuild).fresh(seed)


def backdoor(name: str, **parameters: Any) -> BackdoorAttack:
    built: Any = registry.build("backdoor", {"name": name, **parameters})
    return built


@cache
def victim(name: str | None, **parameters: Any) -> tuple[Classifier, Poisoned | None]:
    """(the 32x32 network trained on the poisoned digits, the poisoned set); no name: on the clean digits."""
    data = digits()[0]
    poisoned = None if name is None else backdoor(name, **parameters).poison(data, 0)
    seen = data if poisoned is None else poisoned.data

    def fit() -> Network:
        model = byobnet()
        train(model, seen, RECIPE, 0)
        return model

    model = artifacts.trained(Store(kit.shared_folder()), {"kind": "victim", "data": seen.digest}, byobnet(), fit)
    return model.eval().requires_grad_(False), poisoned


def granted(poisoned: Poisoned | None, sets: tuple[ImageSet, ImageSet, ImageSet, ImageSet], *sees: str) -> Granted:
    train_set = sets[0] if poisoned is None else poisoned.data
    return Granted("test", sees, train=lambda: train_set, clean=lambda: sets[1], val=lambda: sets[2])


@torch.no_grad()
def success_rate(model: Classifier, attack: BackdoorAttack, test: ImageSet, material: Material | None = None) -> float:
    """ASR: share of wanted labels, over the images that the attacker wants to be labelled otherwise."""
    wanted = attack.wanted(test.labels, test.num_classes)
    places = ((wanted >= 0) & (wanted != test.labels)).nonzero().squeeze(1)
    draws = Draws(0, test.ids[places])
    z = model(attack.stamp(test.pixels(places), draws, wanted=wanted[places], material=material))
    return float((z.argmax(dim=1) == wanted[places]).double().mean())


def stamped(attack: BackdoorAttack, test: ImageSet, n: int) -> tuple[Tensor, Draws]:
    """n triggered test images of other classes than the target 0, and their streams."""
    places = (test.labels != 0).nonzero().squeeze(1)[:n]
    draws = Draws(0, test.ids[places])
    return attack.stamp(test.pixels(places), draws), draws
