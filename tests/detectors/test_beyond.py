"""BEYOND on toy data, and its views and score in closed form."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from siegebench.classifier import Classifier, Network
from siegebench.data import ImageSet, Size
from siegebench.draws import Draws
from siegebench.train import Recipe
from siegebench.types import ModelSource
from tests import kit, victims

from .planted import auroc, detector, only

views: Any = pytest.importorskip("siegebench.detectors._views")
NEUTRAL = torch.full((1, views.NUMBERS), 0.5)  # factors 1, hue 0, no grey
NEUTRAL[:, 4] = 1.0


def corners(n: int, seed: int = 0) -> ImageSet:
    """Squares of one of four grey patterns: the class is where the image is bright."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 4
    x = 0.3 + 0.1 * torch.rand(n, 3, 16, 16, generator=g)
    for c in range(4):
        rows, columns = slice(8 * (c // 2), 8 * (c // 2) + 8), slice(8 * (c % 2), 8 * (c % 2) + 8)
        x[labels == c, :, rows, columns] += 0.5
    return ImageSet((x * 255).round().to(torch.uint8), labels, torch.arange(n), 4, "corners")


def small_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.BatchNorm2d(16),
        nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 4),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Small(ModelSource):
    """A network of two convolutions."""

    def build(self, *, num_classes: int, size: Size) -> Classifier:
        return Network(small_net(), num_classes=num_classes, rebuild=small_net)


class Corners(nn.Module):
    """The brightest corner."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(20.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * nn.functional.avg_pool2d(x.mean(dim=1, keepdim=True), 8).flatten(1)


class Wrong(Classifier):
    """Gives every image the class after the right one."""

    def __init__(self, inner: Network) -> None:
        super().__init__()
        self.inner, self.num_classes, self.card = inner, inner.num_classes, inner.card

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        z: Tensor = self.inner(x).roll(1, dims=1)
        return z


def test_neutral_numbers_crop_the_middle_and_change_no_colour() -> None:
    x = kit.grey_images(3)
    u = NEUTRAL.expand(3, -1).clone()
    u[:, 0] = 1.0  # the whole image
    torch.testing.assert_close(views.views(x, u, 0.2, 0.0), x, atol=1e-5, rtol=1e-4)
    u[:, 4] = 0.0
    torch.testing.assert_close(views.views(x, u, 0.2, 0.5), x.flip(3), atol=1e-5, rtol=1e-4)
    u[:, 10] = 0.0  # grey
    grey = views.views(x, u, 0.2, 0.0)
    torch.testing.assert_close(grey[:, 0], grey[:, 2])


def test_a_view_of_a_smooth_image_is_a_part_of_it() -> None:
    ramp = torch.linspace(0, 1, 33)[:32].expand(1, 3, 32, 32) + 1 / 66
    u = NEUTRAL.clone()
    u[:, 0], u[:, 2], u[:, 9] = 0.0, 0.0, 1.0  # the smallest crop, at the left edge
    out = views.views(ramp, u, 0.25, 0.0)[0, 0, 0]
    assert float(out[-1]) == pytest.approx(float(ramp[0, 0, 0, 15]), abs=0.02)
    assert float(out[0]) == pytest.approx(float(ramp[0, 0, 0, 0]), abs=0.01)


@pytest.fixture(scope="module")
def fitted() -> tuple[Any, Any, Network, ImageSet]:
    """(the detector, its network after a training of seconds, a perfect classifier, its training images)"""
    data, model = corners(320), Network(Corners(), num_classes=4).eval()
    recipe = Recipe(epochs=12, batch=32, lr=0.01, augment="none")
    beyond = replace(detector("beyond"), encoder=Small(), recipe=recipe, width=16, views=12, nearest=5, smallest=0.8)
    network = beyond.trained(only(train=data), victims.ONE, torch.device("cpu"))
    return beyond, network, model, data


def test_images_with_a_wrong_label_are_found(fitted: tuple[Any, Any, Network, ImageSet]) -> None:
    beyond, network, model, data = fitted
    fresh = corners(80, seed=1)
    x, draws = fresh.pixels(), Draws(0, fresh.ids)
    with torch.no_grad():
        right = float((network(x)[1].argmax(dim=1) == fresh.labels).float().mean())
    assert right > 0.9  # the head reads the class from features that were learnt without labels
    assert bool((model(x).argmax(dim=1) == fresh.labels).all())
    clean = beyond.scorer(network, model, only(train=data), victims.ONE)(x, draws)
    wrong = beyond.scorer(network, Wrong(model), only(train=data), victims.ONE)(x, draws)
    assert auroc(wrong, clean) > 0.95


def test_the_score_is_the_kth_largest_consistency(fitted: tuple[Any, Any, Network, ImageSet]) -> None:
    beyond, network, model, data = fitted
    x, draws = data.pixels(slice(0, 5)), Draws(0, torch.arange(5))
    with torch.no_grad():
        u = views.drawn(Draws(0, torch.arange(12))).expand(5, -1, -1)
        c = beyond._consistency(network, x, torch.arange(5) % 4, u)
        z, logits = network(views.views(x, u[:, 3], 0.8, 0.0))
        own, _ = network(x)
    a = logits[torch.arange(5), torch.arange(5) % 4] / logits.norm(dim=1)
    b = (z * own).sum(dim=1) / (z.norm(dim=1) * own.norm(dim=1))
    torch.testing.assert_close(c[:, 3], 0.8 * a + 0.2 * b)
    assert bool((c.abs() <= 1 + 1e-5).all())
    scores = [
        replace(beyond, nearest=k).scorer(network, model, only(train=data), victims.ONE)(x, draws) for k in (1, 5, 12)
    ]
    assert bool((scores[0] <= scores[1]).all())
    assert bool((scores[1] <= scores[2]).all())


def test_the_gradient_lowers_the_score(fitted: tuple[Any, Any, Network, ImageSet]) -> None:
    beyond, network, model, data = fitted
    scorer = beyond.scorer(network, Wrong(model), only(train=data), victims.ONE)
    start = data.pixels(slice(0, 8))
    x, draws = start.clone(), Draws(0, torch.arange(8))
    for step in range(10):
        leaf = x.clone().requires_grad_(True)
        (g,) = torch.autograd.grad(scorer.differentiable(leaf, draws.at(step)).sum(), leaf)
        x = (x - 0.01 * g.sign()).clamp(0, 1).detach()
    assert float((scorer(x, draws) < scorer(start, draws)).float().mean()) > 0.8


def test_more_neighbours_than_views_are_refused() -> None:
    with pytest.raises(Exception, match="nearest: 20 of 10 views"):
        detector("beyond", views=10)
