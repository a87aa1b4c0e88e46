"""Planted models and images for attacks that change few pixels, and the published network that they are shown on."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn

from siegebench import registry
from siegebench.classifier import Classifier, Network
from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.testing.specimens import planted_set
from siegebench.threat import ThreatModel
from siegebench.types import Attack
from tests import kit

SIZE = 12


class Scores(nn.Module):
    """Logits (0, w x - b): with a large b nothing is ever broken."""

    def __init__(self, w: Tensor, b: float) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(w), b

    def forward(self, x: Tensor) -> Tensor:
        s = x.flatten(1) @ self.w.flatten() - self.b
        return torch.stack([torch.zeros_like(s), s], dim=1)


def scores(w: Tensor, b: float) -> Classifier:
    return Network(Scores(w, b), num_classes=2).eval().requires_grad_(False)


def hill(row: int, column: int, size: int = SIZE) -> Tensor:
    """Positive weights [3, size, size] that fall from one pixel on: from anywhere a square can climb to it."""
    at = torch.arange(size)
    far = (at - row).abs()[:, None] + (at - column).abs()[None, :]
    return (0.7**far).expand(3, -1, -1).contiguous()


def grey(n: int = 6, size: int = SIZE) -> tuple[Tensor, Tensor]:
    return torch.full((n, 3, size, size), 0.5), torch.zeros(n, dtype=torch.long)


def l0(eps: float) -> ThreatModel:
    return ThreatModel(norm="l0", eps=eps)


def changed(x_adv: Tensor, x: Tensor) -> Tensor:
    return (x_adv != x).any(dim=1)


def box(mask: Tensor) -> tuple[int, int, int, int]:
    """(row, column, height, width) of the smallest box around what is set."""
    rows, columns = mask.any(dim=1).nonzero().flatten(), mask.any(dim=0).nonzero().flatten()
    return (
        int(rows[0]), int(columns[0]), int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1,
    )  # fmt: skip


STILL = {"rotation": 0.0, "brightness": 0.0}


def taught(attack: Attack, model: Classifier, eps: float, size: int = SIZE, n: int = 80) -> tuple[Tensor, Oracle]:
    """(the pattern that the attack learns, the oracle that it learns with)"""
    data = planted_set(n, size)
    draws = Draws(0, data.ids)
    oracle = Oracle(model, l0(eps), draws)
    return attack.learn(oracle, data, l0(eps), draws), oracle


def signs(seed: int = 0, size: int = SIZE) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return 0.01 * (2.0 * torch.randint(0, 2, (3, size, size), generator=g) - 1)


@cache
def resnet20() -> tuple[Classifier, Tensor, Tensor, ImageSet]:
    """(published network, its first 64 rightly classified test images, their labels, 5,000 training images)"""
    if not (kit.data_folder() / "weights" / "resnet20-12fca82f.th").is_file():
        pytest.skip("needs the weights of the published ResNet-20")
    source = registry.build("dataset", "cifar10_jpeg")
    model = registry.build("model", "cifar_resnet20").build(num_classes=10, size=32).eval().requires_grad_(False)
    test, train = source.load("test"), source.load("train")
    x, y = test.pixels(slice(0, 128)), test.labels[:128]
    keep = (model(x).argmax(1) == y).nonzero().squeeze(1)[:64]
    return model, x[keep], y[keep], train.select(torch.arange(5000))


def held(model: Classifier, x_adv: Tensor, y: Tensor) -> int:
    return int((model(x_adv).argmax(1) == y).sum())
