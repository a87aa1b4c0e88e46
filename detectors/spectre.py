"""SPECTRE: features are whitened with a covariance that outliers hardly change; poisoned images then stand out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.data import Granted
from siegebench.draws import Draws
from siegebench.types import Count, DatasetDetector, Positive, Share

from ._training_set import features, members

FEWEST = 8  # images of a class that is scored
LARGEST = 0.33  # fraction of a class that may be poisoned
FEW = 500  # classes of fewer images:
LARGEST_OF_FEW = 0.1


@dataclass(frozen=True, kw_only=True)
class SPECTRE(DatasetDetector):
    """QUE scores of robustly whitened features, class by class (Hayase, Kong, Somani, Oh, ICML 2021, arXiv 2104.11315).

    With e expected poisoned images in a class of n, for k = 1, 4, 9, ..., 64 principal components of its features:

    1. Robust mean and covariance: the 2 e images farthest from the mean are set aside in `rounds` rounds, each time in
       units of the covariance of those that remain.
    2. Features are whitened by them; Q = exp(alpha (S - I) / (|S|_2 - 1)) with the covariance S of all images, and
       the score of an image is h^T Q h / tr Q.
    3. The k is kept for which the images without the 1.5 e largest scores, as a reference for whitening all of them in
       64 dimensions, give the largest mean score tr(S Q) / tr Q.

    The score of an image is its h^T Q h / tr Q times that largest mean over the median of it over the classes.
    Classes of fewer than eight images score 0.

    Nothing is random. Cost: one forward pass per image, and some eigenproblems of at most 64 dimensions per class.

    Attributes:
        rate: expected fraction of poisoned images in the training set, all in one class; e is at most 33 % of a class,
            10 % of one with fewer than 500 images.
        alpha: 4 in the paper; 0 gives the squared distance, a large one the largest direction only.
        rounds: of step 1.

    Differs from the paper: its rate is the true one; here it is assumed. Step 1 is simpler than its filter. The
    comparison between classes in the last factor is ours; there the class is chosen by the same mean.
    """

    poisons: ClassVar[tuple[dict[str, Any], ...]] = ({"name": "adaptive_blend"}, {"name": "adaptive_patch"})

    rate: Share = 0.05
    alpha: Positive = 4.0
    rounds: Count = 4

    def score(self, model: Classifier, data: Granted, draws: Draws) -> Tensor:
        train = data.train
        h = features(model, train)
        out, means = torch.zeros(len(train), dtype=torch.float64), torch.zeros(train.num_classes, dtype=torch.float64)
        sets = {c: members(train, c) for c in train.labels.unique().tolist()}
        sets = {c: index for c, index in sets.items() if len(index) >= FEWEST}
        for c, index in sets.items():
            most = LARGEST if len(index) >= FEW else LARGEST_OF_FEW
            expected = max(1, min(round(self.rate * len(train)), int(most * len(index))))
            out[index], means[c] = self.of_class(h[index], expected)
        if sets:
            means = means / means[[*sets]].median().clamp(min=1e-12)
        return out * means[train.labels]

    def of_class(self, h: Tensor, expected: int) -> tuple[Tensor, float]:
        """(scores [n], the mean score by which k was chosen) of the features of a class."""
        h = h - h.mean(dim=0)
        _, sigma, v = torch.linalg.svd(h, full_matrices=False)
        rank = int((sigma > 1e-6 * sigma[0].clamp(min=1e-12)).sum())
        best = torch.zeros(len(h), dtype=torch.float64), 0.0
        full = h @ v[: min(64, rank)].T
        for k in sorted({min(rank, round(t * t)) for t in torch.linspace(1, 8, 8).tolist()} - {0}):
            low = full[:, :k]
            scores = self._que(whitened(low, low[self._inliers(low, expected)]))[0]
            rest = scores.argsort()[: len(h) - max(1, round(1.5 * expected))]
            _, mean = self._que(whitened(full, full[rest]))
            if mean > best[1]:
                best = scores, mean
        return best

    def _inliers(self, h: Tensor, expected: int) -> Tensor:
        """Indices of the images that remain (step 1)."""
        kept = torch.arange(len(h))
        aside = min(2 * expected, len(h) // 2)
        for r in range(self.rounds):
            scores = whitened(h[kept], h[kept]).square().sum(dim=1)
            leave = aside * (r + 1) // self.rounds - (len(h) - len(kept))
            kept = kept[scores.argsort()[: len(kept) - leave]]
        return kept

    def _que(self, h: Tensor) -> tuple[Tensor, float]:
        """(h^T Q h / tr Q of whitened features, tr(S Q) / tr Q)"""
        s = h.T @ h / len(h)
        value, vector = torch.linalg.eigh(s)
        q = torch.softmax(self.alpha * (value - 1) / (value[-1] - 1).clamp(min=1e-6), dim=0)
        return (h @ vector).square() @ q, float((value * q).sum())


def whitened(h: Tensor, reference: Tensor) -> Tensor:
    """Features in units in which the reference has mean 0 and covariance I, without directions of no variance."""
    mean = reference.mean(dim=0)
    centred = reference - mean
    value, vector = torch.linalg.eigh(centred.T @ centred / len(reference))
    kept = value > 1e-6 * value[-1].clamp(min=1e-12)
    white: Tensor = (h - mean) @ vector[:, kept] / value[kept].sqrt()
    return white
