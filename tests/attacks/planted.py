"""Victims with a known answer, and what many tests of attacks ask of them."""

from __future__ import annotations

import pytest
import torch
from siegebench.attacks._decision import Queries
from siegebench.attacks.fab import to_hyperplane
from torch import Tensor, nn

from siegebench import ops
from siegebench.classifier import Classifier, Network, Wrapped
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.testing.specimens import victim
from siegebench.threat import Norm, ThreatModel
from siegebench.types import Attack
from tests import kit


def nearest_boundary(model: Classifier, x: Tensor, y: Tensor, norm: str) -> Tensor:
    """Closed form on a linear model, far from the box: margin over the dual norm of the difference of the weights."""
    layer = model.net.layer
    z = model(x)
    gap = z.gather(1, y[:, None]) - z
    w = layer.weight[None] - layer.weight[y][:, None]
    dual = {"linf": w.abs().sum(dim=2), "l2": w.norm(dim=2), "l1": w.abs().amax(dim=2)}[norm]
    far = gap / dual.clamp(min=1e-12)
    return far.scatter(1, y[:, None], float("inf")).amin(dim=1)


def in_the_gap(distances: Tensor) -> float:
    """An eps between two distances, the widest relative gap apart: half of the samples or so can be broken."""
    d = distances.sort().values
    middle = d[len(d) // 4 : -len(d) // 4]
    k = int((middle[1:] / middle[:-1]).argmax())
    return float((middle[k] * middle[k + 1]).sqrt())


class Flat(nn.Module):
    """z = W x of few classes."""

    def __init__(self, classes: int, size: int = 8) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(classes)
        self.layer = nn.Linear(3 * size * size, classes)
        with torch.no_grad():
            self.layer.weight.copy_(torch.randn(self.layer.weight.shape, generator=g))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1) - 0.5)


def few_classes(classes: int) -> Classifier:
    return Network(Flat(classes), num_classes=classes).eval().requires_grad_(False)


NORMS: tuple[Norm, ...] = ("linf", "l2")


class Noisy(Wrapped):
    """Adds noise to the logits, a fresh draw at each look."""

    def __init__(self, inner: Classifier, scale: float) -> None:
        super().__init__(inner)
        self.scale, self.randomized = scale, True

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        draws = draws or Draws.fresh(len(x))
        return self.inner(x) + self.scale * draws.normal((self.num_classes,), purpose="noise")

    def backward_model(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        draws = draws or Draws.fresh(len(x))
        return self.inner.backward_model(x) + self.scale * draws.normal((self.num_classes,), purpose="noise")


class Rounding(Wrapped):
    """Rounds the pixels to a few grey levels; the surrogate lets the gradient through."""

    def __init__(self, inner: Classifier, levels: int) -> None:
        super().__init__(inner)
        self.steps = levels - 1

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        return self.inner((x * self.steps).round() / self.steps)

    def backward_model(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        rounded = (x * self.steps).round() / self.steps
        return self.inner(x + (rounded - x).detach())


class Recording(Wrapped):
    """Remembers every image it is shown, and its logits."""

    def __init__(self, inner: Classifier) -> None:
        super().__init__(inner)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        self.seen.append(x.detach().clone())
        return self.inner(x)


def two_classes() -> Classifier:
    return Network(kit.Linear(classes=2), num_classes=2).eval().requires_grad_(False)


def one_by_one(attack: Attack, model: Classifier, x: Tensor, y: Tensor, norm: Norm, eps: Tensor) -> Tensor:
    """Each sample attacked with a radius of its own."""
    out = []
    for i in range(len(x)):
        threat = ThreatModel(norm=norm, eps=float(eps[i]))
        draws = Draws(0, torch.tensor([i]))
        out.append(attack(Oracle(model, threat, draws), x[i : i + 1], y[i : i + 1], threat, draws))
    return torch.cat(out)


def majority_wrong(model: Classifier, x: Tensor, y: Tensor) -> Tensor:
    draws = Draws(99, torch.arange(len(x)))
    return torch.stack([model(x, draws.at(k)).argmax(1) != y for k in range(41)]).double().mean(0) > 0.5


EPS: dict[Norm, float] = {"linf": 0.1, "l2": 2.0, "l1": 20.0}


def frozen(net: nn.Module, classes: int) -> Classifier:
    return Network(net, num_classes=classes).eval().requires_grad_(False)


def nearest(model: Classifier, x: Tensor, y: Tensor, norm: str) -> Tensor:
    """Distance to the nearest hyperplane of a linear model within the box: min over k, each by its own projection."""
    w, z, out = model.net.layer.weight, model(x), []  # type: ignore[union-attr]
    for k in range(model.num_classes):
        gap = (z.gather(1, y[:, None]) - z[:, k : k + 1]).squeeze(1)
        d = to_hyperplane(x.flatten(1), w[k] - w[y], gap, norm)
        there = ((w[k] - w[y]) * d).sum(1) >= gap * (1 - 1e-4) - 1e-6  # the box may end before
        out.append(torch.where((y != k) & there, ops.size(d, norm), torch.inf))
    return torch.stack(out).amin(dim=0)


def wrong(model: Classifier, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x).argmax(1) != y


def run(
    attack: Attack, model: Classifier, x: Tensor, y: Tensor, norm: Norm = "l2", eps: float = 0.5
) -> tuple[Tensor, Oracle]:
    return kit.attack_with(attack, model, x, y, ThreatModel(norm=norm, eps=eps))


def convolutional(n: int) -> tuple[Classifier, Tensor, Tensor]:
    """A float64 network whose answers are spread over its classes, grey images, and what it calls them."""
    model, _, _ = victim()
    x = kit.grey_images(n, 16).double()
    return model, x, model(x).argmax(1)


def constant() -> Classifier:
    """Class 0 whatever it sees, without a gradient."""
    model = kit.linear_model()
    with torch.no_grad():
        model.net.layer.weight.zero_()  # type: ignore[union-attr]
    return model


both_norms = pytest.mark.parametrize("norm", ["linf", "l2"])


def score(norm: Norm, eps: float, queries: int | None = None) -> ThreatModel:
    return ThreatModel(norm=norm, eps=eps, access="score", queries=queries)


class TwoClasses(nn.Module):
    """Logits (s, -s) / 2 with s = w x + b, so that the margin of class 0 is -s."""

    def __init__(self, w: Tensor, b: float = 0.0) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(w.flatten()), b

    def forward(self, x: Tensor) -> Tensor:
        s = x.flatten(1) @ self.w + self.b
        return torch.stack([s, -s], dim=1) / 2


def half_space(shape: tuple[int, int, int] = (3, 8, 8), b: float = 0.0) -> tuple[Classifier, Tensor]:
    """(linear model of two classes in float64, its weights)."""
    w = Draws(7, torch.zeros(1, dtype=torch.long)).normal(shape)[0].double()
    return Network(TwoClasses(w, b), num_classes=2).double().eval().requires_grad_(False), w


class Brightness(nn.Module):
    """Class 1 where the mean of the image is at least so far from a half, else class 0."""

    def __init__(self, far: float) -> None:
        super().__init__()
        self.far = far

    def forward(self, x: Tensor) -> Tensor:
        s = (x.flatten(1).mean(1) - 0.5).abs() - self.far
        return torch.stack([-s, s], dim=1)


def brightness(far: float) -> Classifier:
    return Network(Brightness(far), num_classes=2).eval()


def two_of(linear: Classifier) -> Classifier:
    """The linear model with all classes but two out of reach."""
    with torch.no_grad():
        linear.net.layer.weight[2:] = 0
        linear.net.layer.bias[2:] = -1000
    return linear


def label_threat(norm: Norm, eps: float = 0.1, queries: int | None = None) -> ThreatModel:
    return ThreatModel(norm=norm, eps=eps, access="label", queries=queries)


def asking(model: Classifier, x: Tensor, norm: Norm, queries: int) -> Queries:
    threat = label_threat(norm, queries=queries)
    y = model(x).argmax(1)
    return Queries(Oracle(model, threat, Draws(0, torch.arange(len(x)))), x, y, threat, queries)
