"""Clients with known images: digits averaged to 16x16 on a small LeNet with sigmoids, and planted networks."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siegebench import registry
from siegebench.classifier import Classifier, Network
from siegebench.data import GREY, ImageSet
from siegebench.draws import Draws
from siegebench.per_image import per_image
from siegebench.types import DataSource, Leak, ModelSource, Recovered, Shared, Sharing


def digits(n: int) -> tuple[Tensor, Tensor]:
    """(grey digits [n, 1, 16, 16], their labels), of n different classes as far as there are."""
    data = registry.build(DataSource, {"name": "digits", "channels": 1}).load("test")
    first = [int((data.labels == c).nonzero()[0]) for c in range(min(n, 10))]
    return F.avg_pool2d(data.pixels(torch.tensor(first)), 2), data.labels[first]


def lenet(x: Tensor) -> Classifier:
    """The LeNet of DLG for images like x and ten classes, with the weights of one seed."""
    stored = ImageSet((x * 255).round().to(torch.uint8), torch.zeros(len(x)).long(), torch.arange(len(x)), 10, "toy",
                      kind=GREY)  # fmt: skip
    return registry.build(ModelSource, "lenet_sigmoid").build_for(stored).fresh(0).eval().requires_grad_(False)


def linear_first(x: Tensor, classes: int, bias: bool = True) -> Classifier:
    """Linear, sigmoid, linear; the last layer has a bias or not."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 32), nn.Sigmoid(), nn.Linear(32, classes, bias=bias))
    model = Network(net, num_classes=classes)
    model.kind = GREY
    return model.eval().requires_grad_(False)


def shared(model: Classifier, x: Tensor, y: Tensor, sharing: Any = "plain", n: int = 1) -> Shared:
    """What clients with n images each release; y are labels, or probabilities [N, classes]."""
    rule = registry.build(Sharing, sharing)
    y = F.one_hot(y, model.num_classes).float() if y.dim() == 1 else y
    each = {k: g.unflatten(0, (-1, n)) for k, g in per_image(model, x, y).items()}
    ids = torch.arange(len(x) // n)
    return Shared(rule(each, Draws(5, ids)), model, rule, n, tuple(x.shape[1:]), x.mean(dim=0))  # type: ignore[arg-type]


def leaked(leak: Any, of: Shared) -> Recovered:
    entry = registry.build(Leak, leak)
    return entry(of, Draws(0, torch.arange(len(of))))


def psnr(found: Recovered, x: Tensor) -> Tensor:
    """Of clients with one image each."""
    assert found.images is not None
    return -10 * (found.images[:, 0] - x).square().flatten(1).mean(dim=1).clamp(min=1e-12).log10()
