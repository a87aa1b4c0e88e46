"""Gaussian anomaly detection: one Gaussian of normal features for each level of a network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.data import Granted
from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from siegebench.layers import Layers
from siegebench.types import Count, InputDetector, Scorer, Share

from ._fitting import SMALLEST, some, whitening


@dataclass(frozen=True, kw_only=True)
class GaussianAD(InputDetector):
    """Score = sum over the levels of the Mahalanobis distance to the mean of normal images, whatever their class.

    Rippel, Mertens, Merhof, "Modeling the distribution of normal data in pre-trained deep features for anomaly
    detection", ICPR 2020, arXiv 2005.14140. Written from the paper. Features are spatial means of the maps of each
    level. `pca` keeps the first components up to a fraction `kept` of the variance, `npca` the others, whose variance
    is small.

    Random: which training images are used. Cost: one forward pass per image.

    Attributes:
        covariance: `full` by Ledoit & Wolf; `diagonal` (the paper's SED) and `none` (L2) are its baselines.
        reduce: principal components that are used.
        kept: fraction of the variance at which `pca` and `npca` divide the components.
        images: training images that are used.

    Differs from the paper: the features are those of the classifier that is supervised, not of an EfficientNet that was
    trained on ImageNet, and normal is any training image.
    """

    covariance: Literal["full", "diagonal", "none"] = "full"
    reduce: Literal["none", "pca", "npca"] = "none"
    kept: Share = 0.99
    images: Count = 4000

    def fit(self, model: Classifier, data: Granted, draws: Draws) -> Scorer:
        x, _ = some(data.train, self.images, draws)
        layers = Layers(model, x[:2].to(next(model.parameters()).device))
        normal = layers.of(x)
        means = [f.mean(dim=0) for f in normal]
        whites = [self._white(f - mean) for f, mean in zip(normal, means, strict=True)]

        def score(x: Tensor, draws: Draws) -> Tensor:
            total = torch.zeros(len(x), dtype=x.dtype, device=x.device)
            for f, mean, white in zip(layers(x, draws), means, whites, strict=True):
                total = total + ((f - mean.to(f)) @ white.to(f)).square().sum(dim=1).clamp(min=1e-12).sqrt()
            return total

        return Scorer(score)

    def _white(self, centred: Tensor) -> Tensor:
        """The directions [d, k] of one level, divided by their standard deviation."""
        if self.covariance == "none":
            return torch.eye(centred.shape[1], dtype=centred.dtype)
        if self.covariance == "diagonal":
            spread = centred.std(dim=0, correction=0)
            if float(spread.max()) == 0:
                raise NotApplicable("no feature of the training images varies: give more images")
            used = spread > SMALLEST * spread.max()
            return torch.diag(torch.where(used, 1 / spread.clamp(min=1e-300), 0.0))
        white = whitening(centred)
        if self.reduce == "none":
            return white
        variance = 1 / white.square().sum(dim=0)  # ascending, as of eigh
        before = (variance.flip(0).cumsum(dim=0) / variance.sum()).flip(0) - variance / variance.sum()
        first = before < self.kept  # components that are needed to reach the fraction
        chosen = first if self.reduce == "pca" else ~first
        chosen[0] |= not bool(chosen.any())  # NPCA keeps at least the smallest
        return white[:, chosen]
