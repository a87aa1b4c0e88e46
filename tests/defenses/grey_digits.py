"""Scans of digits at 16x16, a small network for them, and its accuracy under an attack."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from siegebench import registry
from siegebench.classifier import Classifier
from siegebench.data import Granted, ImageSet
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.threat import Norm, ThreatModel
from siegebench.train import Recipe, predict
from siegebench.types import Defense

ONE = Draws(0, torch.zeros(1, dtype=torch.long))


RECIPE = Recipe(epochs=25, batch=64, lr=5e-3, augment="none")


EPS = 32 / 255  # of the grey digits, whose classes are far apart


def defense(name: str, **parameters: object) -> Defense:
    entry = registry.build("defense", {"name": name, **parameters})
    assert isinstance(entry, Defense)
    return entry


def granted(*sees: str, **sets: ImageSet) -> Granted:
    return Granted("test", sees or tuple(sets), **{k: partial(lambda v: v, v) for k, v in sets.items()})


def digits(split: str) -> ImageSet:
    whole = registry.build("dataset", "digits").load(split)  # type: ignore[attr-defined]
    small = whole.images[:, :, ::2, ::2].contiguous()
    return ImageSet(small, whole.labels, whole.ids, 10, f"digits {split}")


def robust(
    model: Classifier, spec: object, data: ImageSet, n: int = 40, eps: float = EPS, norm: Norm = "linf"
) -> float:
    """Accuracy on n correctly classified images after an attack, by the majority of ten fresh passes."""
    x, y = data.pixels(), data.labels
    right = (predict(model, data, draws=Draws(3, data.ids)).argmax(1) == y).nonzero().squeeze(1)[:n]
    draws, threat = Draws(0, data.ids[right]), ThreatModel(norm=norm, eps=eps)
    attack = registry.build("attack", spec)
    adv = attack(Oracle(model, threat, draws), x[right], y[right], threat, draws)  # type: ignore[operator]
    looks = [model(adv, draws.child("score").at(k)).argmax(1) == y[right] for k in range(10 if model.randomized else 1)]
    return float((torch.stack(looks).double().mean(dim=0) > 0.5).double().mean())


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, 2, 1), nn.ReLU(), nn.Conv2d(12, 24, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, 10),
    )  # fmt: skip
