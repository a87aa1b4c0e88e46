"""SCAn: a class whose features form two groups, while those of other classes form one, contains poisoned images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from sklearn.cluster import KMeans
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.data import Granted
from siegebench.draws import Draws, derive_seed
from siegebench.errors import NotApplicable
from siegebench.types import Count, DatasetDetector, Positive

from ._fitting import SMALLEST
from ._training_set import features, members

FEWEST = 4  # images of a class whose groups are tested


@dataclass(frozen=True, kw_only=True)
class SCAn(DatasetDetector):
    """Anomaly a_c of the likelihood ratio J_c of two groups against one in each class (Tang et al. 2021).

    1. Clean images: h = mu_c + e. The covariances S_u between and S_e within classes are estimated by EM.
    2. Features of each class of the training set, whitened by S_e, are split into two groups by 2-means.
    3. J_c = sum_j n_j / n |u_j - mean|^2 with the means u_j of the groups: the log-likelihood ratio over n / 2.
    4. a_c = max(0, J_c - median) / (1.4826 MAD) over the classes.

    In each class one group is suspected: that with the smaller fraction of the clean images of the class, which are
    assigned to the nearer mean; on a tie, the smaller group. Its images score a_c, all others -1. Published flag:
    score > e.

    Random: the starts of 2-means (seeded per class). Cost: one forward pass per image, EM on the clean features.

    Attributes:
        dims: most principal components of the features that are used; at most half as many as there are clean images
            beyond one for each class, so that S_e can be estimated.
        iterations: most steps of EM.
        tolerance: change of S_u + S_e (Frobenius norm) at which EM stops.

    Differs from the paper: J_c uses the mean of the class in place of an estimate in the common reimplementation that
    misses a factor. a_c is one-sided. Principal components first. It is not known which form the published numbers
    come from.

    Raises:
        NotApplicable: with fewer than three classes that can be split, or too few clean images.
    """

    poisons: ClassVar[tuple[dict[str, Any], ...]] = ({"name": "adaptive_blend"}, {"name": "adaptive_patch"})

    dims: Count = 64
    iterations: Count = 100
    tolerance: Positive = 1e-5

    def score(self, model: Classifier, data: Granted, draws: Draws) -> Tensor:
        train, clean = data.train, data.clean
        sets = [members(train, c) for c in range(train.num_classes)]
        tested = [c for c, index in enumerate(sets) if len(index) >= FEWEST]
        if len(tested) < 3:
            raise NotApplicable(
                f"{len(tested)} classes have {FEWEST} training images; scan compares classes and needs at least 3: "
                "give more images"
            )
        h, known = features(model, train), features(model, clean)
        spare = (len(clean) - len(clean.labels.unique())) // 2
        if spare < 1 or float(h.std(dim=0).max()) == 0:
            raise NotApplicable(f"{len(clean)} clean images; scan needs two more than classes: give more images")
        h, known = _principal(h, known, min(self.dims, spare))
        white = whitener(within(known, clean.labels, self.iterations, self.tolerance))
        h, known = h @ white, known @ white
        j, suspected = torch.zeros(len(tested), dtype=torch.float64), []
        for k, c in enumerate(tested):
            seed = derive_seed(draws.seed, "scan", c) % 2**32
            j[k], group = split(h[sets[c]], known[clean.labels == c], seed)
            suspected.append(sets[c][group])
        median = j.median()
        a = (j - median).clamp(min=0) / (1.4826 * (j - median).abs().median()).clamp(min=1e-12)
        out = torch.full((len(train),), -1.0, dtype=torch.float64)
        for index, value in zip(suspected, a, strict=True):
            out[index] = value
        return out


def within(h: Tensor, y: Tensor, iterations: int, tolerance: float) -> Tensor:
    """The covariance S_e of e in h = mu_c + e, mu_c ~ N(0, S_u), e ~ N(0, S_e), by EM (step 1)."""
    h = h - h.mean(dim=0)
    classes = [h[y == c] for c in y.unique()]
    effects = torch.stack([own.mean(dim=0) for own in classes])

    def covariances(effects: Tensor) -> tuple[Tensor, Tensor]:
        rest = torch.cat([own - u for own, u in zip(classes, effects, strict=True)])
        return effects.T @ effects / len(effects), rest.T @ rest / len(rest)

    s_u, s_e = covariances(effects)
    for _ in range(iterations):
        inverse = torch.linalg.pinv(s_e)
        effects = torch.stack(
            [s_e @ torch.linalg.pinv(len(own) * s_u + s_e) @ s_u @ inverse @ own.sum(dim=0) for own in classes]
        )
        before = s_u + s_e
        s_u, s_e = covariances(effects)
        if float((s_u + s_e - before).norm()) < tolerance:
            break
    return s_e


def whitener(covariance: Tensor) -> Tensor:
    """W [d, k] with |W^T v|^2 = v^T S^+ v."""
    value, vector = torch.linalg.eigh(covariance)
    kept = value > SMALLEST * value[-1]
    return vector[:, kept] / value[kept].sqrt()


def split(h: Tensor, known: Tensor, seed: int) -> tuple[float, Tensor]:
    """(J, which rows form the suspected group) of the whitened features of a class and of its clean images."""
    if float((h - h[0]).abs().max()) == 0:
        return 0.0, torch.zeros(len(h), dtype=torch.bool)
    fitted = KMeans(2, n_init=10, random_state=seed).fit(h.numpy())
    second = torch.from_numpy(fitted.labels_) == 1
    means = torch.stack([h[~second].mean(dim=0), h[second].mean(dim=0)])
    sizes = torch.stack([(~second).sum(), second.sum()]).double()
    j = float((sizes / len(h) * (means - h.mean(dim=0)).square().sum(dim=1)).sum())
    shares = sizes / len(h)
    if len(known):
        nearest = torch.cdist(known, means).argmin(dim=1)
        clean = torch.bincount(nearest, minlength=2).double() / sizes
        shares = shares if clean[0] == clean[1] else clean
    return j, second if shares[1] < shares[0] else ~second


def _principal(h: Tensor, known: Tensor, dims: int) -> tuple[Tensor, Tensor]:
    """Both sets of features in the first principal components of the first."""
    mean = h.mean(dim=0)
    _, _, v = torch.linalg.svd(h - mean, full_matrices=False)
    return (h - mean) @ v[:dims].T, (known - mean) @ v[:dims].T
