"""Gaussian augmentation: it gives up the feature that noise hides, and uses new noise in each epoch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from siegebench.classifier import Network
from siegebench.data import ImageSet
from siegebench.train import Recipe, train

from .two_features import ONE, build, granted

SIGMA = 0.4
RECIPE = {"epochs": 20, "batch": 32, "lr": 0.02, "augment": "none", "weight_decay": 0.0}


def striped(n: int = 256) -> ImageSet:
    """Two classes that differ by 1/10 in each of 48 numbers: invisible in one under noise, plain in their mean."""
    labels = torch.arange(n) % 2
    x = 0.45 + 0.1 * labels.view(n, 1, 1, 1).expand(n, 3, 4, 4).float()
    return ImageSet((255 * x).round().to(torch.uint8), labels, torch.arange(n), 2, "striped")


def net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 2))


def model() -> Network:
    return Network(net(), num_classes=2, mean=(0.5,), std=(0.1,), rebuild=net).fresh(1)


def weights(of: Network) -> Tensor:
    w = of.net[1].weight.detach()  # type: ignore[index,union-attr]
    return w[1] - w[0]


def test_it_learns_the_best_linear_filter_for_this_noise() -> None:
    data = striped()
    plain = model()
    train(plain, data, Recipe(**RECIPE), 0)
    trained = build("gaussian_augmentation", sigma=SIGMA, recipe=RECIPE).apply(model(), granted(data), ONE)
    assert isinstance(trained, Network)
    expected = 0.1 * 0.1 / SIGMA**2  # difference of the means / variance, in normalised units: the same everywhere
    assert abs(float(weights(trained).mean()) - expected) < 0.25 * expected
    assert abs(float(weights(plain).mean()) - expected) > 0.5 * expected


def test_noise_is_new_in_each_epoch_and_has_the_right_size() -> None:
    seen: list[Tensor] = []

    class Watching(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.detach().clone())
            return super().forward(x)

    def watching() -> nn.Module:
        return Watching(nn.Flatten(), nn.Linear(48, 2))

    data = striped(64)
    recipe = {**RECIPE, "epochs": 2, "batch": 64}
    given = Network(watching(), num_classes=2, rebuild=watching).fresh(1)
    build("gaussian_augmentation", sigma=SIGMA, recipe=recipe).apply(given, granted(data), ONE)
    first, second = seen
    eta = first - first.mean(dim=(1, 2, 3), keepdim=True)
    assert abs(float(eta.std()) - SIGMA) < 0.01
    assert not torch.equal(first.sort(dim=0).values, second.sort(dim=0).values)
    assert float(first.amin()) < 0
