"""Models with known geometry, a measure on one batch, and the published network."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siegebench import registry
from siegebench.classifier import Classifier, Network
from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.prepare import prepare
from siegebench.threat import Norm, ThreatModel
from siegebench.train import predict
from siegebench.types import Lesson, Measure
from tests import kit

DUAL = {"linf": 1, "l2": 2, "l1": math.inf}


EPS: dict[Norm, float] = {"linf": 0.02, "l2": 0.2, "l1": 1.0}


class Affine(nn.Module):
    """z = W x + b."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.flatten(1), self.weight, self.bias)


def affine(weight: Tensor, bias: Tensor | None = None) -> Classifier:
    bias = torch.zeros(len(weight)) if bias is None else bias
    return Network(Affine(weight, bias), num_classes=len(weight)).eval().requires_grad_(False)


def two_classes(size: int = 8) -> tuple[Classifier, Tensor, Tensor, Tensor]:
    """(linear model, images that are near its boundary, their labels, w_1 - w_0)"""
    g = torch.Generator().manual_seed(3)
    w = torch.randn(2, 3 * size * size, generator=g) * 0.5
    x = kit.grey_images(20, size)
    way = w[1] - w[0]
    z = torch.linspace(-2, 2, 20)  # margins, none of them zero
    flat = x.flatten(1)
    flat = 0.5 + 0.3 * (flat - 0.5) + (z - (0.5 + 0.3 * (flat - 0.5)) @ way)[:, None] * way / way.square().sum()
    return affine(w), flat.view_as(x), (z > 0).long(), way


def measured(
    entry: Measure,
    model: Classifier,
    x: Tensor,
    y: Tensor,
    norm: Norm = "l2",
    data: ImageSet | None = None,
    lesson: Lesson = None,
) -> tuple[dict[str, float], Oracle]:
    """(metrics, oracle); it learns from `data` first where it learns."""
    threat, draws = ThreatModel(norm=norm, eps=EPS[norm]), Draws(0, torch.arange(len(x)))
    oracle = Oracle(model, threat, draws)
    if data is not None:
        own = Draws(1, data.ids)
        lesson = entry.learn(Oracle(model, threat, own), data, threat, own)
    found = entry(oracle, x, y, threat, draws, lesson)
    assert found["flags"] == []
    return found["metrics"], oracle


def built(name: str, **parameters: Any) -> Any:
    return registry.build("measure", {"name": name, **parameters})


@cache
def prepared_resnet20() -> tuple[Classifier, ImageSet, ImageSet]:
    """(the published network, prepared; train; the test images that it gets right of the first 200)"""
    kit.data_folder()
    source: Any = registry.build("dataset", "cifar10_jpeg")
    network: Any = registry.build("model", "cifar_resnet20")
    test = source.load("test").select(torch.arange(200))
    model = prepare(network.build(num_classes=10, size=32).eval().requires_grad_(False), test.pixels(slice(32)))
    right = (predict(model, test).argmax(dim=1) == test.labels).nonzero().squeeze(1)
    return model, source.load("train"), test.select(right)


def frozen(net: nn.Module, classes: int = 10) -> Classifier:
    return Network(net, num_classes=classes).double().eval().requires_grad_(False)


def run(
    measure: Measure,
    model: Classifier,
    x: Tensor,
    y: Tensor,
    ids: Tensor | None = None,
    seed: int = 0,
    lesson: Lesson = None,
) -> tuple[dict[str, float], Oracle]:
    threat, draws = ThreatModel(), Draws(seed, torch.arange(len(x)) if ids is None else ids)
    oracle = Oracle(model, threat, draws)
    found = measure(oracle, x, y, threat, draws, lesson)
    assert found["flags"] == []
    return found["metrics"], oracle


def noise(n: int = 20) -> Tensor:
    return 0.45 + 0.1 * Draws(9, torch.arange(n)).uniform((3, 10, 10)).double()


@cache
def resnet20() -> tuple[Classifier, Tensor, Tensor]:
    """(the published network, the first 32 test images of cifar10_jpeg that it gets right, their labels)"""
    if not (kit.data_folder() / "weights" / "resnet20-12fca82f.th").is_file():
        pytest.skip("needs the folder with real data and weights: set SIEGEBENCH_DATA")
    data: Any = registry.build("dataset", "cifar10_jpeg")
    test, source = data.load("test"), registry.build("model", "cifar_resnet20")
    model = source.build(num_classes=10, size=32).eval().requires_grad_(False)  # type: ignore[attr-defined]
    x, y = test.pixels(slice(64)), test.labels[:64]
    right = (model(x).argmax(1) == y).nonzero().squeeze(1)[:32]
    return model, x[right], y[right]
