"""Boundary tilting: the angle of a linear classifier, and what regularisation does to it."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench.classifier import Classifier, Network
from siegebench.data import ImageSet
from siegebench.errors import ContractError
from tests import victims

from .planted import Affine, affine, built, measured


def tilted(degrees: float) -> tuple[Classifier, Tensor, Tensor, ImageSet]:
    """(linear classifier through the midpoint of two means, images beside the means, labels, training images)"""
    d = 3 * 8 * 8
    g = torch.Generator().manual_seed(5)
    images = torch.randint(110, 146, (2, 3, 8, 8), generator=g)
    spread = torch.randint(-20, 21, (4, 3, 8, 8), generator=g)
    training = torch.cat([images + s for s in (*spread, *(-spread))]).to(torch.uint8)  # means are the two images
    data = ImageSet(training, torch.arange(16) % 2, torch.arange(16), 2, "tilted")
    means = images.double().flatten(1) / 255
    way = means[1] - means[0]
    unit = way / way.norm()
    aside = torch.randn(d, generator=g).double()
    aside = aside - (aside @ unit) * unit
    theta = math.radians(degrees)
    w = math.cos(theta) * unit + math.sin(theta) * aside / aside.norm()
    b = -w @ means.mean(dim=0)
    model = Network(Affine(torch.stack([-w, w]), torch.stack([-b, b])), num_classes=2).double()
    y = torch.arange(10) % 2
    away = 0.05 * torch.randn(10, d, generator=g).double()
    x = means[y] + away - (away @ w)[:, None] * w  # as far from the boundary as the mean
    return model.eval().requires_grad_(False), x.view(10, 3, 8, 8), y, data


@pytest.mark.parametrize("degrees", [0.0, 30.0, 60.0, 80.0])
def test_tilting_of_a_linear_classifier_is_its_angle_and_one_over_its_cosine(degrees: float) -> None:
    model, x, y, data = tilted(degrees)
    got, _ = measured(built("boundary_tilting"), model, x, y, "linf", data)
    assert got["not_found"] == 0
    assert got["angle_mean"] == pytest.approx(degrees, abs=0.01)
    assert got["angle_median"] == pytest.approx(degrees, abs=0.01)
    for name in ("strength_mean", "strength_median"):
        assert got[name] == pytest.approx(1 / math.cos(math.radians(degrees)), rel=0.02)


def test_tilting_leaves_out_what_it_cannot_know() -> None:
    model, x, y, data = tilted(30)
    with pytest.raises(ContractError, match="call learn first"):
        measured(built("boundary_tilting"), model, x, y)
    half = data.select((data.labels == 0).nonzero().squeeze(1))
    assert set(measured(built("boundary_tilting"), model, x, y, data=half)[0]) == {"not_found"}
    dead = affine(torch.zeros(2, 192), torch.tensor([1.0, 0.0]))
    got, _ = measured(built("boundary_tilting"), dead, x.float()[::2], y[::2], data=data)
    assert got == {"not_found": 1.0}


def odd_and_even() -> tuple[ImageSet, ImageSet]:
    """(train, test) digits, labelled 1 when they are odd; at half the contrast, far from the box; 8x8."""
    train_set, _, _, test = victims.tiny_digits()
    out = []
    for part in (train_set, test):
        grey = (64 + part.images // 2).to(torch.uint8)
        out.append(ImageSet(grey, part.labels % 2, part.ids, 2, "odd or even"))
    return out[0], out[1]


def logistic(data: ImageSet, decay: float) -> Classifier:
    """Logistic regression with an L2 penalty, to convergence."""
    x, sign = data.pixels(dtype=torch.float64).flatten(1) - 0.5, 2.0 * data.labels - 1
    w = torch.zeros(x.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([w], max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = F.softplus(-sign * (x @ w[:-1] + w[-1])).mean() + decay * w[:-1].square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    slope, bias = w.detach()[:-1], w.detach()[-1] - 0.5 * w.detach()[:-1].sum()
    return affine(torch.stack([-slope, slope]), torch.stack([-bias, bias])).double()


def test_strength_falls_with_regularisation_and_follows_the_angle() -> None:
    train_set, test = odd_and_even()
    x, y = test.pixels(dtype=torch.float64), test.labels
    rows = []
    for decay in (1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6):
        model = logistic(train_set, decay)
        right = (model(x).argmax(dim=1) == y).nonzero().squeeze(1)
        got, _ = measured(built("boundary_tilting"), model, x[right], y[right], data=train_set)
        angle, strength, cosine = got["angle_mean"], got["strength_median"], math.cos(math.radians(got["angle_mean"]))
        rows.append((len(right) / len(x), angle, strength))
        print(f"decay {decay:g}: accuracy {rows[-1][0]:.3f}, angle {angle:.1f}, strength {strength:.2f}, "
              f"1/cos {1 / cosine:.2f}")  # fmt: skip
        if decay <= 1e-3:  # else the boundary is far from the midpoint of the means
            assert strength == pytest.approx(1 / cosine, rel=0.1)
    assert all(a[1] < b[1] and a[2] < b[2] for a, b in pairwise(rows))
    assert rows[-1][2] > 3.5
    best = max(rows)
    assert best[2] < rows[-1][2] / 2  # strength has no part in what the classifier is worth
