"""LID: local intrinsic dimensionality of an input among clean images, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.data import Granted
from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from siegebench.layers import BATCH, Layers
from siegebench.types import Count, InputDetector, Positive, Scorer

from ._fitting import one_step, regression, some


@dataclass(frozen=True, kw_only=True)
class LID(InputDetector):
    """LID_l(x) = -(1/k sum_{i<=k} log(r_i / r_k))^{-1}, r_i: distance to the i-th nearest clean image in layer l.

    Ma, Li, Wang, Erfani, Wijewickrema, Schoenebeck, Song, Houle, Bailey, "Characterizing adversarial subspaces using
    local intrinsic dimensionality", ICLR 2018, arXiv 1801.02613. The score is a logistic regression of the LIDs of all
    layers, standardised, for FGSM images of training images against clean and equally noisy ones.

    Random: which training images are used, and the noise. Cost: one forward pass per image.

    Attributes:
        k: neighbours, less than `batch`.
        batch: clean training images among which neighbours are searched.
        images: training images that the regression is fitted on.
        eps: step of FGSM.

    Differs from the paper: features are spatial means of the maps. Neighbours come from one fixed batch of training
    images, so that the score of an input does not depend on the others. The noise has the L2 norm of FGSM's step. The
    regression never uses the attack that is to be detected (the paper has one for each attack, and one row with FGSM
    only).
    """

    k: Count = 20
    batch: Count = 100
    images: Count = 1000
    eps: Positive = 8 / 255

    def fit(self, model: Classifier, data: Granted, draws: Draws) -> Scorer:
        x, y = some(data.train, self.batch + self.images, draws)
        size = min(self.batch, len(x) // 2)
        k = min(self.k, size - 1)
        if k < 2:
            raise NotApplicable(f"{len(x)} training images, 6 are needed for neighbours: give more images")
        device = next(model.parameters()).device
        layers = Layers(model, x[:2].to(device))
        near = layers.of(x[:size])
        x, y = x[size:], y[size:]
        bad = one_step(model, x, y, self.eps)
        noise = Draws(draws.seed, torch.arange(len(x))).normal(tuple(x.shape[1:]), purpose="noise")
        noise = noise * ((bad - x).flatten(1).norm(dim=1) / noise.flatten(1).norm(dim=1)).view(-1, 1, 1, 1)

        def lids(features: list[Tensor]) -> Tensor:
            pairs = [(f, n.to(f)) for f, n in zip(features, near, strict=True)]
            return torch.stack([torch.cat([lid(part, n, k) for part in f.split(BATCH)]) for f, n in pairs], dim=1)

        clean, noisy, attacked = (lids(layers.of(z)) for z in (x, (x + noise).clamp(0, 1), bad))
        weight = regression(positive=attacked, negative=torch.cat([clean, noisy]))

        def score(x: Tensor, draws: Draws) -> Tensor:
            found = lids(layers(x, draws))
            return found @ weight.to(found)

        return Scorer(score)


def lid(f: Tensor, near: Tensor, k: int) -> Tensor:
    """LID of features [n, d] among clean ones [m, d], by maximum likelihood (Amsaleg et al. 2015): [n].

    A clean image that is the input itself, at distance 0, is skipped.
    """
    square = (f[:, None] - near[None]).square().sum(dim=2)
    far = torch.where(square <= 1e-12, torch.full_like(square, torch.inf), square)
    nearest = far.topk(k, dim=1, largest=False).values.clamp(max=1e30)  # squared distances: log r = log r^2 / 2
    mean = (nearest.log() / 2).mean(dim=1) - nearest[:, -1].log() / 2
    return -1 / mean.clamp(max=-1e-6)
