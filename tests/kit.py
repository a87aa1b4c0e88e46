"""What many tests need: models with a known answer, images well inside the box, one attack on one batch."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from siegebench.classifier import Classifier, Network
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.threat import ThreatModel
from siegebench.types import Attack, Lesson


class Linear(nn.Module):
    """z = W x + b on flattened images: the nearest adversarial point is known in closed form."""

    def __init__(self, classes: int = 10, size: int = 8, seed: int = 0, scale: float = 1.0) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.layer = nn.Linear(3 * size * size, classes)
        with torch.no_grad():
            self.layer.weight.copy_(torch.randn(self.layer.weight.shape, generator=g) * scale)
            self.layer.bias.copy_(torch.randn(classes, generator=g) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.layer(x.flatten(1))
        return z


def small_cnn(classes: int = 10, seed: int = 0) -> nn.Module:
    """Untrained, smooth enough to attack, milliseconds a batch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, classes),
        )  # fmt: skip


def grey_images(n: int = 16, size: int = 8, seed: int = 1) -> Tensor:
    """Images well inside [0, 1], so that the box does not matter for small budgets."""
    g = torch.Generator().manual_seed(seed)
    return 0.3 + 0.4 * torch.rand(n, 3, size, size, generator=g)


def attack_with(
    attack: Attack,
    model: Classifier,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    seed: int = 0,
    lesson: Lesson = None,
) -> tuple[Tensor, Oracle]:
    """(x_adv, oracle) of one attack on one batch, sample ids 0..n-1."""
    draws = Draws(seed, torch.arange(len(x)))
    oracle = Oracle(model, threat, draws)
    return attack(oracle, x, y, threat, draws, lesson), oracle


def linear_model(**kwargs: float) -> Classifier:
    return Network(Linear(**kwargs), num_classes=10).eval().requires_grad_(False)  # type: ignore[arg-type]


def cnn_model(seed: int = 0) -> Classifier:
    return Network(small_cnn(seed=seed), num_classes=10, rebuild=small_cnn).eval().requires_grad_(False)


def data_folder() -> Path:
    """The folder with the real data sets and weights; skips the test where there is none."""
    named = os.environ.get("SIEGEBENCH_DATA")
    if not named or not Path(named).is_dir():
        pytest.skip("needs real data: set SIEGEBENCH_DATA to the folder with the parquet files and weights/")
    return Path(named)


_shared: list[Path] = []


def share(folder: Path) -> None:
    """Called once, before the first test, with a folder that all processes of pytest-xdist have in common."""
    _shared[:] = [folder]


def shared_folder() -> Path:
    """A folder of this run of the tests, for what is made once and then only read; the store's locks guard it."""
    return _shared[0]
