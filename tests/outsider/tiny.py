from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from siegebench.classifier import Network
from siegebench.data import Size
from siegebench.train import Recipe
from siegebench.types import ModelSource
from siegebench.weights import check_fit, load_weights, weights_hash

RECIPE = Recipe(epochs=2, lr=1e-2, augment="none")


def net(classes: int, size: Size, channels: int = 3) -> nn.Module:
    height, width = (size, size) if isinstance(size, int) else size
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16 * (height // 8) * (width // 8), classes),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Tiny(ModelSource):
    """Two convolutions; trained in a second, or loaded from a file."""

    local: ClassVar[tuple[str, ...]] = ("checkpoint",)

    checkpoint: str | None = None
    recipe: Recipe = RECIPE

    def build(self, *, num_classes: int, size: Size, channels: int = 3) -> Network:
        make = partial(net, num_classes, size, channels)
        made = make()
        if self.checkpoint is not None:
            state = load_weights(self.checkpoint)
            check_fit(state, made.state_dict(), Path(self.checkpoint))
            made.load_state_dict(state)
        same = {"mean": (0.0,) * channels, "std": (1.0,) * channels}
        return Network(made, num_classes=num_classes, rebuild=make, **same)

    def pretrained(self) -> bool:
        return self.checkpoint is not None

    def identity(self) -> dict[str, Any]:
        return {} if self.checkpoint is None else {"weights": weights_hash(load_weights(self.checkpoint))}
