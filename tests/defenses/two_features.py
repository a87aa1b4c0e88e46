"""Images with a robust feature and one that is not, and a linear network, for which adversarial training is exact."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from siegebench import registry
from siegebench.classifier import Classifier, Network
from siegebench.data import Granted, ImageSet
from siegebench.draws import Draws

ONE = Draws(0, torch.zeros(1, dtype=torch.long))
EPS = 0.2
SHORT = {"epochs": 12, "batch": 64, "lr": 0.2, "weight_decay": 0.0, "augment": "none"}
RECIPE = {"epochs": 40, "batch": 64, "lr": 0.1, "weight_decay": 0.0, "augment": "none"}


def build(name: str, **parameters: Any) -> Any:
    return registry.build("defense", {"name": name, **parameters})


def two_features(n: int = 512) -> ImageSet:
    """Two classes, images of 2x2 grey pixels with two features that tell the classes apart.

    Robust: the upper left pixel is 0.5 -+ 0.3 for 90 % of the images and the other way round for the rest, so no
    perturbation of size 0.2 changes what it says. Not robust: the other three pixels are 0.5 -+ 0.1 for every image.
    """
    labels, ids = torch.arange(n) % 2, torch.arange(n)
    sign = 2.0 * labels - 1
    kept = torch.where(ids % 20 < 18, sign, -sign)
    x = torch.full((n, 1, 2, 2), 0.5) + 0.1 * sign[:, None, None, None]
    x[:, 0, 0, 0] = 0.5 + 0.3 * kept
    return ImageSet((255 * x).round().to(torch.uint8).expand(-1, 3, -1, -1), labels, ids, 2, "two features")


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 2))


def model() -> Network:
    return Network(linear(), num_classes=2, mean=(0.5,) * 3, std=(0.25,) * 3, rebuild=linear).fresh(3)


def granted(data: ImageSet, *sees: str) -> Granted:
    parts = dict.fromkeys(sees or ("train",), data)
    return Granted("test", tuple(parts), **{k: partial(lambda v: v, v) for k, v in parts.items()})


def against_the_other_class(defended: Classifier, data: ImageSet, eps: float) -> float:
    """Accuracy on the worst image of each Linf ball: of a linear network it is x - eps sign(w_y - w_other)."""
    layer = defended.net[1]  # type: ignore[union-attr,index]
    w = (layer.weight[1] - layer.weight[0]).view(1, 3, 2, 2) * (2.0 * data.labels - 1)[:, None, None, None]
    worst = data.pixels() - eps * w.sign()
    return float((defended(worst).argmax(dim=1) == data.labels).double().mean())


def learns_the_robust_feature(name: str, **parameters: Any) -> None:
    """The trained network uses the robust feature alone: in the ball it is as accurate as the feature."""
    data = two_features(256)
    robust = build(name, **parameters).apply(model(), granted(data), ONE)
    says = float((torch.arange(len(data)) % 20 < 18).double().mean())
    assert against_the_other_class(robust, data, EPS) >= says - 0.01
    assert float((robust(data.pixels()).argmax(1) == data.labels).double().mean()) <= says + 0.01
