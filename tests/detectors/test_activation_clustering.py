"""Activation clustering finds planted clusters and nothing where there is none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from siegebench.classifier import Network
from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from tests import victims

from .planted import auroc, detector, images, only


class Features(nn.Module):
    """Features are the pixels themselves."""

    def __init__(self, size: int, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(3 * size * size, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


def blobs(share: float, n: int = 100, classes: int = 3) -> tuple[ImageSet, Tensor]:
    """Each class one cloud of features, except that `share` of class 0 lies elsewhere; (the set, which are those)."""
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(n * classes) % classes
    x = 100 + 40 * labels[:, None] + 12 * torch.randn(n * classes, 48, generator=g)
    odd = torch.zeros(n * classes, dtype=torch.bool)
    odd[(labels == 0).nonzero().squeeze(1)[: round(share * n)]] = True
    x[odd, :24] += 90
    x = x.clamp(0, 255).round().to(torch.uint8).view(-1, 3, 4, 4)
    return ImageSet(x, labels, torch.arange(len(labels)), classes, "blobs"), odd


def cluster_scores(data: ImageSet, seed: int = 0) -> Tensor:
    model = Network(Features(data.images.shape[-1], data.num_classes), num_classes=data.num_classes).eval()
    draws = Draws(seed, torch.zeros(1, dtype=torch.long))
    return detector("activation_clustering").score(model, only(train=data), draws)


def test_activation_clustering_finds_a_planted_cluster() -> None:
    data, odd = blobs(0.2)
    score = cluster_scores(data)
    assert score.shape == (len(data),)
    assert bool((score[odd] > 0.3).all())
    assert float(score[~odd].max()) < float(score[odd].min())
    assert bool((score[(data.labels == 0) & ~odd] == -1).all())


def test_activation_clustering_flags_no_cluster_above_its_share() -> None:
    data, odd = blobs(0.45)
    score = cluster_scores(data)
    assert bool((score[odd] < 0).all())  # not flagged, by construction of the method
    assert bool((score[odd] > -1).all())
    assert bool((score[(data.labels == 0) & ~odd] == -1).all())


def test_activation_clustering_does_not_see_the_order() -> None:
    data, _ = blobs(0.2)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(cluster_scores(data.select(order)), cluster_scores(data)[order])


def test_activation_clustering_without_anything_to_cluster() -> None:
    flat = ImageSet(torch.full((30, 3, 4, 4), 7, dtype=torch.uint8), torch.arange(30) % 3, torch.arange(30), 3, "flat")
    assert bool((cluster_scores(flat) == -1).all())
    few = images(4, size=4, classes=3)  # classes of one and two images
    with pytest.raises(NotApplicable, match="at least 3 of a class"):
        cluster_scores(few)


def test_activation_clustering_finds_poisons_at_a_low_rate() -> None:
    model, poisoned = victims.victim("badnets", rate=0.05)
    assert poisoned is not None
    sets = victims.digits()
    score = detector("activation_clustering").score(model, victims.granted(poisoned, sets, "train"), victims.ONE)
    bad = torch.zeros(len(score), dtype=torch.bool)
    bad[poisoned.index] = True
    mislabelled = bad & (sets[0].labels != poisoned.data.labels)
    assert float((score[mislabelled] > 0).double().mean()) > 0.8
    assert auroc(score[mislabelled], score[~bad]) > 0.9
