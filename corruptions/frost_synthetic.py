"""FrostSynthetic: a substitute for frost with rendered crystals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from siegebench.draws import Draws
from siegebench.ops import over
from siegebench.types import Corruption, Count

from ._grey import as_channels
from ._plasma import plasma
from ._severity import constants
from .frost import LARGE, SMALL

TINT = (0.9, 1.02, 1.08)  # of ice


@dataclass(frozen=True, kw_only=True)
class FrostSynthetic(Corruption):
    """A substitute for `frost` without photographs: x' = clip(a x + b f), f rendered frost, (a, b) as in `frost`.

    f has a background of grey U(0.35, 0.7) with a plasma fractal (see `_plasma`), and feathers of ice on it. Each
    feather is a stem of length U(0.2, 0.6) times the smaller side, at a random position and angle, with barbs at 60
    degrees that shorten towards the tip. f is bluish. Its mean and spread are close to those of the photographs; its
    shapes are ours.

    Hendrycks, Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019.
    Random: all of f. Cost: about 15 passes over one channel for each feather.

    Differs from the paper: in everything but (a, b). Do not compare its results with results for frost.

    Attributes:
        feathers: number of feathers per image.
    """

    group: ClassVar[str] = "weather"

    feathers: Count = 16

    def run(self, x: Tensor, severity: int, draws: Draws) -> Tensor:
        (a, b), _ = constants(x, severity, LARGE, SMALL)
        size = (x.shape[2], x.shape[3])
        ground = 0.35 + 0.35 * draws.uniform(purpose="ground")
        grey = over(ground, x[:, 0]) + 0.2 * (plasma(size, 2.0, draws, "ground") - 0.5)
        ice = _feathers(size, self.feathers, draws)
        f = (grey + 0.7 * (1 - grey) * ice)[:, None] * x.new_tensor(TINT, dtype=torch.float32).view(-1, 1, 1)
        return (a * x + b * as_channels(f.clamp(0, 1), x.shape[1]).to(x.dtype)).clamp(0, 1)


def _feathers(size: tuple[int, int], count: int, draws: Draws) -> Tensor:
    """Brightness of the ice, float32 [n, H, W] in [0, 1]: the brightest feather at each pixel."""
    height, width = size
    device = draws.ids.device
    h, w = torch.arange(height, device=device)[:, None], torch.arange(width, device=device)
    drawn = draws.uniform((4, count), purpose="feathers")[..., None, None]
    length = min(size) * (0.2 + 0.4 * drawn[:, 3])
    ice = torch.zeros(len(draws), height, width, device=device)
    for k in range(count):
        down, right = h - height * drawn[:, 0, k], w - width * drawn[:, 1, k]
        angle = 2 * torch.pi * drawn[:, 2, k]
        along, across = right * angle.cos() + down * angle.sin(), (down * angle.cos() - right * angle.sin()).abs()
        left = (length[:, k] - along) * (along > 0)  # from here to the tip
        gap = (length[:, k] / 10).clamp(min=3)
        wave = (2 * torch.frac((along - across * 0.577) / gap).abs() - 1).abs()
        barbs = (0.3 + 0.7 * wave) * (1 - across / (0.3 * left).clamp(min=1e-6)).clamp(0, 1)
        stem = (1 - across / (0.06 * left).clamp(min=1e-6)).clamp(0, 1)
        ice = torch.maximum(ice, torch.maximum(barbs, stem))
    return ice
