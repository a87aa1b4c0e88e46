"""Pixel statistics: a detector that uses no network, as a reference for the others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.data import Granted
from siegebench.draws import Draws
from siegebench.types import Count, InputDetector, Scorer

from ._fitting import some, whitening


@dataclass(frozen=True, kw_only=True)
class PixelStatistics(InputDetector):
    """Mahalanobis distance of a few statistics of the pixels to those of training images.

    The statistics: mean and standard deviation of each channel, energy of the differences of neighbours, and how much
    larger those differences are at the borders of 8x8 blocks (as JPEG leaves them) than elsewhere. The images that it
    finds differ in camera, codec or brightness. A detector of other data must be better than this to show more.

    Random: which training images are used. Cost: no pass of the model.

    Attributes:
        images: training images that are used.
    """

    images: Count = 4000

    def fit(self, model: Classifier, data: Granted, draws: Draws) -> Scorer:
        x, _ = some(data.train, self.images, draws)
        normal = statistics(x.double())
        mean = normal.mean(dim=0)
        white = whitening(normal - mean)

        def score(x: Tensor, draws: Draws) -> Tensor:
            found = statistics(x)
            return ((found - mean.to(found)) @ white.to(found)).square().sum(dim=1)

        return Scorer(score)


def statistics(x: Tensor) -> Tensor:
    """[n, 2 C + 2] of images [n, C, H, W]."""
    across, down = (x[..., 1:] - x[..., :-1]).square(), (x[..., 1:, :] - x[..., :-1, :]).square()
    rough = (across.mean(dim=(1, 2, 3)) + down.mean(dim=(1, 2, 3)) + 1e-8).log()
    border = (torch.arange(across.shape[3], device=x.device) % 8) == 7
    lines = across.mean(dim=(1, 2))
    blocky = torch.zeros_like(rough)
    if bool(border.any()):
        blocky = (lines[:, border].mean(dim=1) + 1e-8).log() - (lines[:, ~border].mean(dim=1) + 1e-8).log()
    spread = (x.var(dim=(2, 3), correction=0) + 1e-8).sqrt()
    return torch.cat([x.mean(dim=(2, 3)), spread, rough[:, None], blocky[:, None]], dim=1)
