"""Detectors by name, images, and exactly the data they may read."""

from __future__ import annotations

from typing import Any

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from siegebench import registry
from siegebench.data import Granted, ImageSet


def detector(name: str, **parameters: Any) -> Any:
    return registry.build("detector", {"name": name, **parameters})


def images(n: int, size: int = 8, seed: int = 0, high: int = 256, classes: int = 10) -> ImageSet:
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(0, high, (n, 3, size, size), generator=g, dtype=torch.uint8)
    return ImageSet(x, torch.arange(n) % classes, 3 * torch.arange(n), classes, "random")


def only(**sets: ImageSet) -> Granted:
    """Exactly these sets; anything else that is read raises."""
    return Granted("test", tuple(sets), **{k: (lambda v=v: v) for k, v in sets.items()})


def auroc(positive: Tensor, negative: Tensor) -> float:
    return float(roc_auc_score([1] * len(positive) + [0] * len(negative), torch.cat([positive, negative])))
