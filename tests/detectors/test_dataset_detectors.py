"""Spectral signatures, SCAn and SPECTRE on Gaussian features: planted clusters are found, closed forms hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from siegebench.data import ImageSet
from siegebench.errors import NotApplicable
from tests import victims

from .planted import auroc, detector, images, only

D = 16


class Given(torch.nn.Module):
    """A model whose features are looked up by the first pixels of the image, which hold its id."""

    card, num_classes, randomized = None, 10, False

    def __init__(self, h: Tensor) -> None:
        super().__init__()
        self.h = torch.nn.Parameter(h)

    def features(self, x: Tensor) -> Tensor:
        number = (x * 255).round().long()[:, :2, 0, 0]
        return self.h[number[:, 0] * 256 + number[:, 1]]


def numbered(labels: Tensor, first: int = 0) -> ImageSet:
    ids = torch.arange(first, first + len(labels))
    x = torch.zeros(len(labels), 3, 1, 1, dtype=torch.uint8)
    x[:, 0, 0, 0], x[:, 1, 0, 0] = ids // 256, ids % 256
    return ImageSet(x, labels, ids, 10, "numbered")


def gaussians(seed: int, share: float, shift: float = 4.0) -> tuple[Given, ImageSet, ImageSet, Tensor]:
    """10 classes of 200, `share` of class 3 a shifted cluster, and 20 clean images each: (model, train, clean, odd)."""
    g = torch.Generator().manual_seed(seed)
    means = 3 * torch.randn(10, D, generator=g)
    mix = torch.randn(D, D, generator=g) / D**0.5 + torch.eye(D)
    labels = torch.arange(2200) % 10
    h = means[labels] + torch.randn(2200, D, generator=g) @ mix
    odd = torch.zeros(2000, dtype=torch.bool)
    odd[(labels[:2000] == 3).nonzero().squeeze(1)[: round(200 * share)]] = True
    h[:2000][odd] += shift * torch.nn.functional.normalize(torch.randn(D, generator=g), dim=0) @ mix
    return Given(h.double()), numbered(labels[:2000]), numbered(labels[2000:], 2000), odd


def scores(name: str, model: Any, train: ImageSet, clean: ImageSet | None = None, **parameters: Any) -> Tensor:
    sets = {"train": train} if clean is None else {"train": train, "clean": clean}
    found: Tensor = detector(name, **parameters).score(model, only(**sets), victims.ONE)
    return found


@pytest.mark.parametrize("seed", [0, 1])
def test_scan_finds_the_class_and_the_cluster(seed: int) -> None:
    model, train, clean, odd = gaussians(seed, 0.3, shift=8.0)
    score = scores("scan", model, train, clean)
    assert float(score[odd].mean()) > 50  # far above e, and above every other class
    assert float((score[odd] > 0).double().mean()) > 0.95
    assert float((score[(train.labels == 3) & ~odd] > 0).double().mean()) < 0.05
    assert float(score[train.labels != 3].max()) < 10
    model, train, clean, _ = gaussians(seed, 0)
    assert float(scores("scan", model, train, clean).max()) < 10


def test_scan_is_the_likelihood_ratio() -> None:
    scan: Any = pytest.importorskip("siegebench.detectors.scan")
    g = torch.Generator().manual_seed(0)
    h = torch.randn(60, 3, generator=g, dtype=torch.float64)
    h[:20] += 6
    j, group = scan.split(h, h[30:], 0)
    assert group.nonzero().flatten().tolist() == list(range(20))  # the group without clean images
    unit = torch.distributions.MultivariateNormal(torch.zeros(3).double(), torch.eye(3).double())
    one = unit.log_prob(h - h.mean(dim=0)).sum()
    two = unit.log_prob(h[:20] - h[:20].mean(dim=0)).sum() + unit.log_prob(h[20:] - h[20:].mean(dim=0)).sum()
    assert j == pytest.approx(float(2 * (two - one) / 60))
    assert bool((~scan.split(h, h[:20], 0)[1]).nonzero().flatten().eq(torch.arange(20)).all())  # now the other one


def test_em_recovers_the_covariance_within_classes() -> None:
    scan: Any = pytest.importorskip("siegebench.detectors.scan")
    g = torch.Generator().manual_seed(1)
    y = torch.arange(4000) % 40
    scale = torch.tensor([1.0, 0.5, 2.0]).double()
    h = 3 * torch.randn(40, 3, generator=g).double()[y] + scale * torch.randn(4000, 3, generator=g).double()
    torch.testing.assert_close(scan.within(h, y, 100, 1e-5), scale.square().diag(), atol=0.15, rtol=0.1)


@pytest.mark.parametrize("compare", ["raw", "ranks"])
def test_spectral_signatures_find_a_small_cluster(compare: str) -> None:
    model, train, _, odd = gaussians(0, 0.1, shift=8.0)
    score = scores("spectral_signatures", model, train, compare=compare)
    own = train.labels == 3
    assert auroc(score[odd], score[own & ~odd]) > 0.95
    assert compare == "ranks" or auroc(score[odd], score[~odd]) > 0.9
    if compare == "ranks":
        assert float(score[own].min()) == 0
        assert float(score[own].max()) == 1


def test_spectral_signatures_are_the_projection_on_the_first_eigenvector() -> None:
    model, train, _, _ = gaussians(2, 0)
    score = scores("spectral_signatures", model, train)
    h = model.features(train.pixels())[train.labels == 5].detach()
    h = h - h.mean(dim=0)
    first = torch.linalg.eigh(h.T @ h).eigenvectors[:, -1]
    torch.testing.assert_close(score[train.labels == 5], (h @ first).square())


@pytest.mark.parametrize("name", ["scan", "spectral_signatures", "spectre"])
def test_scores_do_not_depend_on_the_order(name: str) -> None:
    model, train, clean, _ = gaussians(3, 0.2)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    one, two = (scores(name, model, t, clean if name == "scan" else None) for t in (train, train.select(order)))
    torch.testing.assert_close(two, one[order])


def test_spectre_finds_a_cluster_in_a_direction_of_small_variance() -> None:
    """The first singular vector does not show it; whitening by the clean part does."""
    model, train, _, odd = gaussians(0, 0.1, shift=0.0)
    h = model.h.detach()
    h[:, 0] *= 20
    h[:2000][odd, 1] += 6
    own, found = train.labels == 3, {}
    for name, parameters in {"spectre": {"rate": 0.01}, "spectral_signatures": {}}.items():
        score = scores(name, model, train, **parameters)
        found[name] = auroc(score[odd], score[own & ~odd])
        assert name != "spectre" or auroc(score[odd], score[~odd]) > 0.95  # the class stands out, too
    assert found["spectre"] > 0.95
    assert found["spectral_signatures"] < 0.7


def test_scan_says_what_it_needs() -> None:
    few = images(6, size=4, classes=3)
    with pytest.raises(NotApplicable, match="at least 3: give more images"):
        scores("scan", victims.byobnet(), few, few)
