"""Activation clustering: poisoned and clean images of one label form two clusters in feature space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.data import Granted
from siegebench.draws import Draws, derive_seed
from siegebench.errors import NotApplicable
from siegebench.types import Count, DatasetDetector, Share

from ._training_set import features, members

SMALLEST = 3  # images of a class that can be clustered


@dataclass(frozen=True, kw_only=True)
class ActivationClustering(DatasetDetector):
    """Split the penultimate features of each class into two clusters and suspect a small, well separated one.

    Chen et al. 2018. For each class as labelled: features, their first `dims` principal components, 2-means, the
    silhouette S of the split. The scores are, from most to least suspicious,

        S       in the smaller cluster, if it has less than `max_share` of the class (published flag: score > 0),
        S - 1   in the smaller cluster otherwise,
        -1      in the larger cluster.

    By construction, poisoned images that make up more than `max_share` of their class are not flagged. In an all-to-one
    attack on 10 classes they make up 47 % at rate 0.1 and 31 % at rate 0.05. Classes of fewer than three images are not
    clustered; their images score -1.

    Random: the k-means starts (seeded per class).

    Attributes:
        dims: principal components kept.
        max_share: largest fraction of the class that a flagged cluster may have.

    Differs from the paper: principal instead of independent components. The silhouette serves as a continuous score,
    and nothing is retrained to confirm a flag.
    """

    poisons: ClassVar[tuple[dict[str, Any], ...]] = ({"name": "adaptive_blend"}, {"name": "adaptive_patch"})

    dims: Count = 10
    max_share: Share = 0.35

    def score(self, model: Classifier, data: Granted, draws: Draws) -> Tensor:
        train = data.train
        h = features(model, train)
        out = torch.full((len(train),), -1.0)
        largest = int(train.labels.bincount().max())
        if largest < SMALLEST:
            raise NotApplicable(
                f"no class has more than {largest} training images; activation_clustering needs at least {SMALLEST} of "
                "a class to find two clusters: give more images"
            )
        for c in train.labels.unique().tolist():
            index = members(train, c)
            if len(index) < SMALLEST:
                continue
            seed = derive_seed(draws.seed, "activation clustering", c) % 2**32
            small, s = self._split(h[index], seed)
            fraction = float(small.double().mean())
            out[index[small]] = s if fraction < self.max_share else s - 1
        return out

    def _split(self, h: Tensor, seed: int) -> tuple[Tensor, float]:
        """(which rows form the smaller cluster, silhouette of the split); no rows if all features are equal."""
        h = h - h.mean(dim=0)
        u, sigma, _ = torch.linalg.svd(h, full_matrices=False)
        low = (u * sigma)[:, : self.dims].numpy()
        if float(sigma[0]) == 0:
            return torch.zeros(len(h), dtype=torch.bool), 0.0
        cluster = torch.from_numpy(KMeans(2, n_init=10, random_state=seed).fit_predict(low))
        small = cluster == int(cluster.sum() * 2 < len(cluster))
        return small, float(silhouette_score(low, cluster.numpy()))
