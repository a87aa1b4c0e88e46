"""Frequency: a small network that distinguishes clean from corrupted images by their cosine transform."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from siegebench.classifier import Classifier, Network
from siegebench.data import IMAGE, Granted
from siegebench.draws import Draws, derive_seed
from siegebench.errors import NotApplicable
from siegebench.train import Recipe, train
from siegebench.types import InputDetector, Scorer

Corruption = Literal["white_block", "noise_block", "noise", "shadow", "blend"]
ALL: tuple[Corruption, ...] = ("white_block", "noise_block", "noise", "shadow", "blend")


@dataclass(frozen=True, kw_only=True)
class Frequency(InputDetector):
    """Classify the DCT of an image as clean or triggered; score = the logit (Zeng, Park, Mao, Jia, ICCV 2021).

    The network has six convolutions of 32 to 128 channels and sees the orthonormal DCT-II of each channel. It learns
    clean images against the same images with one of the corruptions, drawn anew in each epoch: a white or a noisy
    block of 2 to 7 pixels near a corner (in a 32-pixel image), noise of mean 25/255 and variance 10 to 70 / 255^2, a
    darker triangle, or 0.3 times another clean image added.

    It does not use the model. Random: its weights, the order of the images, the corruptions. Cost: one small
    training; one pass of the small network per image.

    Attributes:
        corruptions: those that it is trained on. Leave out those that resemble the triggers to be detected, or the
            result says nothing about other triggers: the blocks resemble patches, `noise` and `blend` resemble a
            blended image.
        recipe: how the network is trained.

    Differs from the paper: AdamW instead of Adadelta, one schedule instead of five rounds of ten epochs, adaptive
    average pooling before the last layer for images of any size. It learns from the small clean budget only.

    Raises:
        NotApplicable: for other data than images, and with fewer than two clean images.
    """

    poisons: ClassVar[tuple[dict[str, Any], ...]] = ({"name": "batt"},)  # a trigger without high frequencies

    corruptions: tuple[Corruption, ...] = ALL
    recipe: Recipe = field(
        default_factory=lambda: Recipe(epochs=50, batch=64, lr=2e-3, weight_decay=1e-4, augment="none")
    )

    def fit(self, model: Classifier, data: Granted, draws: Draws) -> Scorer:
        clean = data.clean
        if clean.kind.name != IMAGE.name:
            raise NotApplicable(
                f"frequency learns from corrupted images, the data is {clean.kind.name}; it needs images"
            )
        if len(clean) < 2 or not self.corruptions:
            raise NotApplicable(f"{len(clean)} clean images, {len(self.corruptions)} corruptions: give more")
        n, channels = len(clean), clean.shape[0]
        both = torch.arange(n).repeat(2)
        pairs = replace(
            clean.select(both),
            labels=torch.arange(2).repeat_interleave(n),
            ids=torch.arange(2 * n),
            num_classes=2,
            classes=None,
            groups=None,
        )
        device = next(model.parameters()).device

        def rebuild() -> nn.Module:
            return _net(channels)

        seed = derive_seed(draws.seed, "frequency")
        with torch.random.fork_rng(devices=[]):  # initialisers draw from the global generator
            untrained = Network(rebuild(), num_classes=2, rebuild=rebuild)
        net = untrained.fresh(seed).to(device)

        def images(x: Tensor, y: Tensor, index: Tensor, epoch: int) -> Tensor:
            streams = Draws(seed, index.to(x.device)).at(epoch)
            other = streams.integers(n, purpose="other").cpu()
            bad = corrupted(x, clean.pixels(other, x.dtype).to(x.device), streams, self.corruptions)
            return torch.where((y == 1).view(-1, 1, 1, 1), bad, x)

        train(net, pairs, self.recipe, seed, images=images)
        net.requires_grad_(False)

        def score(x: Tensor, draws: Draws) -> Tensor:
            z = net(x.float())
            return (z[:, 1] - z[:, 0]).to(x.dtype)

        return Scorer(score)


def corrupted(x: Tensor, other: Tensor, draws: Draws, kinds: tuple[Corruption, ...]) -> Tensor:
    """Each image [n, C, H, W] with one of the kinds of corruption, drawn for each."""
    block = _block(x, draws)
    noise, spread = draws.uniform(tuple(x.shape[1:]), purpose="block"), draws.uniform((1, 1, 1), purpose="spread")
    normal = draws.normal(tuple(x.shape[1:]), purpose="noise")
    made: dict[str, Tensor] = {
        "white_block": torch.where(block, torch.ones_like(x), x),
        "noise_block": torch.where(block, noise.to(x), x),
        "noise": x + ((25 + (10 + 60 * spread).sqrt() * normal) / 255).to(x),
        "shadow": torch.where(_triangle(x, draws), 0.5 * x, x),
        "blend": x + 0.3 * other,
    }
    which = draws.integers(len(kinds), purpose="kind")
    stacked = torch.stack([made[kind] for kind in kinds])
    return stacked[which, torch.arange(len(x), device=x.device)].clamp(0, 1)


def _block(x: Tensor, draws: Draws) -> Tensor:
    """Masks [n, 1, H, W] of blocks with sides of 2 to 7 pixels, 0 to 5 pixels from a corner, of 32-pixel images."""
    height, width = x.shape[-2:]
    sides = draws.integers(6, (2,), purpose="sides") + 2
    gaps = draws.integers(6, (2,), purpose="gaps")
    corner = draws.integers(2, (2,), purpose="corner")
    inside = []
    for axis, length in enumerate((height, width)):
        side = (sides[:, axis] * length / 32).round().clamp(min=1)
        gap = (gaps[:, axis] * length / 32).round()
        start = torch.where(corner[:, axis] == 0, gap, length - gap - side)[:, None]
        at = torch.arange(length, device=x.device)
        inside.append((at >= start) & (at < start + side[:, None]))
    return (inside[0][:, :, None] & inside[1][:, None, :])[:, None]


def _triangle(x: Tensor, draws: Draws) -> Tensor:
    """Masks [n, 1, H, W] of triangles with random corners."""
    height, width = x.shape[-2:]
    corners = draws.uniform((3, 2), purpose="shadow") * torch.tensor([height, width], device=x.device)
    rows = torch.arange(height, device=x.device).view(1, -1, 1)
    columns = torch.arange(width, device=x.device).view(1, 1, -1)
    sides = []
    for a, b in ((0, 1), (1, 2), (2, 0)):
        (y0, x0), (y1, x1) = (corners[:, k, :].unbind(1) for k in (a, b))
        y0, x0, y1, x1 = (v.view(-1, 1, 1) for v in (y0, x0, y1, x1))
        sides.append((x1 - x0) * (rows - y0) - (y1 - y0) * (columns - x0) >= 0)
    all_sides = torch.stack(sides)
    return (all_sides.all(dim=0) | ~all_sides.any(dim=0))[:, None]


def dct(n: int) -> Tensor:
    """The orthonormal DCT-II as a matrix [n, n]: rows are frequencies."""
    k, i = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)
    basis = torch.cos(math.pi * (i + 0.5) * k / n) * math.sqrt(2 / n)
    basis[0] /= math.sqrt(2)
    return basis.float()


class _DCT(nn.Module):
    """The DCT of images in 8-bit units."""

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (dct(n).to(x) for n in x.shape[-2:])
        return rows @ (255 * x) @ columns.T


def _net(channels: int) -> nn.Module:
    """Six convolutions, ELU and batch norm after each; pooling and dropout after each pair."""
    layers: list[nn.Module] = [_DCT()]
    for width, dropout in ((32, 0.2), (64, 0.3), (128, 0.4)):
        for _ in range(2):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ELU(), nn.BatchNorm2d(width)]
            channels = width
        layers += [nn.MaxPool2d(2), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * 128, 2))
