"""Inversion: how well a decoder restores an image from the last feature maps of a classifier."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siegebench import ops
from siegebench.data import ImageSet, subset
from siegebench.draws import Draws, derive_seed
from siegebench.errors import NotApplicable
from siegebench.oracle import Oracle
from siegebench.threat import ThreatModel
from siegebench.types import Count, DataSource, Lesson, Measure, Positive

from . import _maps

WIDTH = 64  # channels of the first layer of the decoder; each further one has half


@dataclass(frozen=True, kw_only=True)
class Inversion(Measure):
    """A decoder of transposed convolutions, trained on the last feature maps of the frozen network: min |x - d(f(x))|.

    Rojas-Gomez, Yeh, Do, Nguyen, "Inverting Adversarially Robust Networks for Image Synthesis", ACCV 2022, arXiv
    2106.06927: images are reconstructed better from features of robust networks, also images of other data. The loss
    is the mean absolute error of the pixels plus `weight` times the mean squared error of the features of d(f(x)),
    relative to their variance. Metrics, means over the images: psnr (dB), ssim, and psnr_mean, the control: every
    image replaced by its mean colour. With `other`, the same for images of another data set (psnr_other, ...).
    Pictures: image and reconstruction, side by side.

    Random: the initial weights of the decoder and the order of the training images; noise of a randomised model.

    Cost: epochs x images x two forward passes and one backward pass of the network, and those of the decoder.

    Differs from the paper: no adversarial loss (GAN); a small decoder, not the mirror of the network; few epochs.

    Attributes:
        epochs, images: of the training of the decoder; the first training images in a random order.
        lr, batch: of Adam.
        weight: of the feature loss.
        other: another data set; its images must have the size of these.
    """

    learns: ClassVar[bool] = True

    epochs: Count = 5
    images: Count = 2500
    lr: Positive = 2e-3
    batch: Count = 64
    weight: Positive = 0.1
    other: DataSource | None = None

    def quick(self) -> Self:
        return replace(self, epochs=1, images=16, other=None)

    def learn(self, oracle: Oracle, data: ImageSet, threat: ThreatModel, draws: Draws) -> nn.Module:
        """The decoder."""
        like = next(oracle.model.parameters())
        chosen = draws.order("decoder")[: self.images].cpu()
        sample = data.pixels(chosen[:1], like.dtype).to(like.device)
        shape, size = tuple(feature_maps(oracle[:1], sample).shape[1:]), tuple(sample.shape[1:])
        with torch.random.fork_rng(devices=[]):  # initialisers draw from the global generator
            torch.manual_seed(derive_seed(draws.seed, "decoder"))
            decoder = Decoder(shape, size).to(like.device, like.dtype)
        optimiser = torch.optim.Adam(decoder.parameters(), self.lr)
        total = self.epochs * -(-len(chosen) // self.batch)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, self.lr, max(2, total))
        for epoch in range(self.epochs):
            order = chosen[Draws(draws.seed, chosen).order(f"epoch {epoch}")]
            for index in order.split(self.batch):
                x, seen = data.pixels(index, like.dtype).to(like.device), oracle[index.to(like.device)]
                with torch.no_grad():
                    h = feature_maps(seen, x)
                again = decoder(h)
                apart = (feature_maps(seen, again) - h).square().mean() / h.var().clamp(min=1e-12)
                loss = (again - x).abs().mean() + self.weight * apart
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                seen.ledger.backwards.index_add_(0, seen.rows, torch.ones_like(seen.rows))
                optimiser.step()
                schedule.step()
        return decoder.eval().requires_grad_(False)

    def run(
        self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws, lesson: Lesson = None
    ) -> dict[str, Any]:
        metrics, again = self._restored(oracle, x, lesson, "")
        if self.other is not None:
            data = subset(self.other.scan("test"), len(x))
            foreign = data.pixels(dtype=x.dtype).to(x.device)
            if foreign.shape[1:] != x.shape[1:]:
                raise NotApplicable(
                    f"{data.name} has images {tuple(foreign.shape[1:])}, these are {tuple(x.shape[1:])}"
                )
            metrics |= self._restored(oracle, foreign, lesson, "_other")[0]
        pictures = _maps.side_by_side(x[: _maps.SHOWN], again[: _maps.SHOWN])
        return {"metrics": metrics, "flags": [], "pictures": pictures}

    @staticmethod
    def _restored(oracle: Oracle, x: Tensor, decoder: nn.Module, name: str) -> tuple[dict[str, float], Tensor]:
        with torch.no_grad():
            again = decoder(feature_maps(oracle, x))
        flat = x.mean(dim=(2, 3), keepdim=True).expand_as(x)
        found = {"psnr": psnr(x, again), "ssim": ops.ssim(x, again), "psnr_mean": psnr(x, flat)}
        return {f"{figure}{name}": float(value.double().mean()) for figure, value in found.items()}, again


class Decoder(nn.Module):
    """Feature maps [n, c, h, w] to images in [0, 1], by doubling their size, and resizing at the end.

    Args:
        shape: (c, h, w).
        size: (C, H, W) of the images.
    """

    def __init__(self, shape: tuple[int, ...], size: tuple[int, ...]) -> None:
        super().__init__()
        self.size = size[1:]
        doublings = max(1, round(math.log2(max(size[1] / shape[1], size[2] / shape[2]))))
        layers: list[nn.Module] = [nn.BatchNorm2d(shape[0])]
        inside, outside = shape[0], WIDTH
        for _ in range(doublings):
            layers += [nn.ConvTranspose2d(inside, outside, 4, 2, 1), nn.BatchNorm2d(outside), nn.LeakyReLU(0.2)]
            inside, outside = outside, max(16, outside // 2)
        self.net = nn.Sequential(*layers, nn.Conv2d(inside, size[0], 3, 1, 1))

    def forward(self, h: Tensor) -> Tensor:
        image = F.interpolate(self.net(h), self.size, mode="bilinear", align_corners=False)
        return image.sigmoid()


def feature_maps(oracle: Oracle, x: Tensor) -> Tensor:
    """Output of the last convolution for images [n, C, H, W]; gradients pass to x where they are enabled."""
    kept: list[Tensor] = []

    def keep(a: Tensor) -> Tensor:
        kept.append(a)
        return a

    seen = oracle.tapped(keep)
    if torch.is_grad_enabled():
        seen(x)
    else:
        seen.logits(x)
    return kept[-1]


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each pair of images in [0, 1], in dB, [n]; at most 100."""
    return -10 * ops.flat(a - b).double().square().mean(dim=1).clamp(min=1e-10).log10()
