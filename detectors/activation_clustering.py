"""Activation clustering: poisons and clean images of one label lie in two clusters of feature space."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.data import Granted, ImageSet
from siegebench.draws import Draws, derive_seed
from siegebench.types import Count, DatasetDetector, Share


@dataclass(frozen=True, kw_only=True)
class ActivationClustering(DatasetDetector):
    """Split the penultimate features of each class in two and suspect a small, well separated part (Chen et al. 2018).

    For each class as labelled: features, their first `dims` principal components, 2-means, the silhouette S of the
    split. The scores are, from most to least suspicious,

        S       in the smaller cluster, when it holds less than `max_share` of the class (published flag: score > 0),
        S - 1   in the smaller cluster otherwise,
        -1      in the larger cluster.

    By construction a poison that fills more than `max_share` of its class is not flagged: in an all-to-one attack on
    10 classes that is 47 % at rate 0.1 and 31 % at rate 0.05. The k-means starts are random (seeded for each class).

    Attributes:
        dims: principal components kept.
        max_share: of the class that a flagged cluster may hold.

    Differs from the paper: principal instead of independent components; the silhouette serves as a continuous score,
    and nothing is retrained to confirm a flag.
    """

    dims: Count = 10
    max_share: Share = 0.35

    def score(self, model: Classifier, data: Granted, draws: Draws) -> Tensor:
        train = data.train
        h = _features(model, train)
        out = torch.full((len(train),), -1.0)
        for c in train.labels.unique().tolist():
            members = (train.labels == c).nonzero().squeeze(1)
            members = members[train.ids[members].argsort()]  # k-means must not see how the set is listed
            if len(members) < 3:
                continue
            seed = derive_seed(draws.seed, "activation clustering", c) % 2**32
            small, s = self._split(h[members], seed)
            share = float(small.double().mean())
            out[members[small]] = s if share < self.max_share else s - 1
        return out

    def _split(self, h: Tensor, seed: int) -> tuple[Tensor, float]:
        """(which rows form the smaller cluster, silhouette of the split); no rows where the features do not differ."""
        h = h - h.mean(dim=0)
        u, sigma, _ = torch.linalg.svd(h, full_matrices=False)
        low = (u * sigma)[:, : self.dims].numpy()
        if float(sigma[0]) == 0:
            return torch.zeros(len(h), dtype=torch.bool), 0.0
        cluster = torch.from_numpy(KMeans(2, n_init=10, random_state=seed).fit_predict(low))
        small = cluster == int(cluster.sum() * 2 < len(cluster))
        return small, float(silhouette_score(low, cluster.numpy()))


@torch.no_grad()
def _features(model: Classifier, data: ImageSet, batch: int = 500) -> Tensor:
    device, dtype = next(model.parameters()).device, next(model.parameters()).dtype
    places = torch.arange(len(data)).split(batch)
    return torch.cat([model.features(data.pixels(p, dtype).to(device)).double().cpu() for p in places])
