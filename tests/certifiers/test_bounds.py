"""Interval and linear bounds: never above what sampling, attacks, a grid or a MILP finds on many small networks."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from siegebench import registry
from siegebench.bounds import Ball, Op, intervals, margins, values
from siegebench.classifier import Network, Wrapped
from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from siegebench.prepare import prepare
from siegebench.traced import operations
from siegebench.types import Certifier, ModelSource
from tests import kit

from .networks import convolutional, dense, exact_margin, images

NAMES = ("ibp", "crown")
SHAPE = (1, 2, 2)


def certifier(name: str, **parameters: int) -> Certifier:
    return registry.build(Certifier, {"name": name, **parameters})


def lower(name: str, model: Network, x: Tensor, norm: str, eps: float, **parameters: int) -> tuple[Tensor, Tensor]:
    """(lower bounds of the margins, the predictions)"""
    ops, y = operations(model, x), model(x).argmax(dim=1)
    with torch.no_grad():
        found: Tensor = certifier(name, **parameters).lower(
            ops, Ball(x, norm, eps), y, torch.full((len(x),), torch.inf)
        )  # type: ignore
    return found, y


def sampled(x: Tensor, norm: str, eps: float, count: int, seed: int) -> Tensor:
    """Points of each ball and the box, [n, count, ...]: corners in Linf, the sphere in L2, and random ones inside."""
    g = torch.Generator().manual_seed(seed)
    u = torch.randn(len(x), count, *x.shape[1:], generator=g, dtype=x.dtype)
    u = u.sign() if norm == "linf" else u / u.flatten(2).norm(dim=2).view(len(x), count, 1, 1, 1)
    u[:, : count // 3] *= torch.rand(len(x), count // 3, 1, 1, 1, generator=g, dtype=x.dtype)
    return (x[:, None] + eps * u).clamp(0, 1)


def test_no_bound_is_above_what_is_sampled_on_hundreds_of_networks() -> None:
    tried = certified = 0
    for seed in range(150):
        conv = seed % 3 == 2
        model = convolutional(seed) if conv else dense(seed)
        x = images(4, (3, 6, 6) if conv else SHAPE, seed)
        norm = "l2" if seed % 2 else "linf"
        eps = (0.003, 0.02, 0.1, 0.3)[seed % 4]
        points = sampled(x, norm, eps, 60, seed)
        z = model(points.flatten(0, 1)).unflatten(0, points.shape[:2])
        for name in NAMES:
            low, y = lower(name, model, x, norm, eps)
            own = z.gather(2, y[:, None, None].expand(-1, 60, 1))
            worst = (own - z).amin(dim=1).scatter(1, y[:, None], torch.inf)
            assert bool((low <= worst + 1e-9).all()), f"{name} on network {seed}, {norm} {eps}"
            certified += int((low > 0).all(dim=1).sum())
            tried += len(x)
    assert 0.2 < certified / tried < 0.95  # a test of bounds that certify nothing, or all, would prove little


@pytest.mark.parametrize("seed", range(0, 42, 7))  # ReLU
def test_bounds_are_below_the_exact_minimum_and_in_order(seed: int) -> None:
    model, x, eps = dense(seed, depth=2), images(1, SHAPE, seed), 0.15
    if any(type(m).__name__ == "Residual" for m in model.net):  # type: ignore[union-attr]
        model = dense(seed + 70, depth=1)
    y = int(model(x).argmax())
    exact = torch.tensor([exact_margin(model, x[0], eps, y, k) if k != y else torch.inf for k in range(3)])
    by = {
        name: lower(name.partition("+")[0], model, x, "linf", eps, **more)[0][0]
        for name, more in {"ibp": {}, "crown+ibp": {"widest": 0}, "crown": {}}.items()
    }
    assert bool((by["ibp"] <= by["crown+ibp"] + 1e-9).all())
    assert bool((by["crown+ibp"] <= by["crown"] + 1e-9).all())
    assert bool((by["crown"] <= exact + 1e-6).all())
    found = sampled(x, "linf", eps, 300, seed)[0]
    z = model(found)
    assert bool((exact <= (z[:, y : y + 1] - z).amin(dim=0).scatter(0, torch.tensor([y]), torch.inf) + 1e-6).all())


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_certified_where_a_grid_has_another_class(name: str) -> None:
    """The exhaustive search of DLV (Huang et al., CAV 2017): all points of a grid in the ball."""
    steps = torch.linspace(-1, 1, 7, dtype=torch.float64)
    grid = torch.tensor(list(itertools.product(steps.tolist(), repeat=4))).double().view(-1, *SHAPE)
    radii, refuted, held = (0.01, 0.05, 0.2, 0.5), 0, 0
    for seed in range(12):
        model, x = dense(seed), images(3, SHAPE, seed)
        found = certifier(name)(model, x, "linf", radii, Draws(0, torch.arange(3)))
        for radius, holds in zip(radii, found.holds, strict=True):
            for i in range(3):
                classes = model((x[i] + radius * grid).clamp(0, 1)).argmax(dim=1)
                other = bool((classes != found.prediction[i]).any())
                refuted, held = refuted + other, held + int(holds[i])
                assert not (other and holds[i])
    assert refuted > 5
    assert held > 10


def test_bounds_at_radius_zero_are_the_logits() -> None:
    for model, shape in ((convolutional(1), (3, 6, 6)), (convolutional(5), (3, 6, 6)), (dense(3), SHAPE)):
        x = images(2, shape)
        ops = operations(model, x)
        for l, u in intervals(ops, Ball(x, "linf", 0.0)):
            torch.testing.assert_close(l, u, atol=1e-9, rtol=0)
        torch.testing.assert_close(values(ops, x), model(x))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("norm", "dual"), [("linf", 1.0), ("l2", 2.0)])
def test_a_linear_network_is_bounded_exactly(name: str, norm: str, dual: float) -> None:
    model = Network(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), num_classes=2).double().requires_grad_(False)
    x, w = 0.3 + 0.4 * images(5, (3, 2, 2)), model.net[1].weight  # type: ignore[index,union-attr]
    z, y = model(x), model(x).argmax(dim=1)
    low, _ = lower(name, model, x, norm, 0.05)
    other = 1 - y
    far = 0.05 * (w[1] - w[0]).norm(dual) if norm == "linf" or name == "crown" else 0.05 * (w[0].norm() + w[1].norm())
    expected = z.gather(1, y[:, None]) - z.gather(1, other[:, None]) - far
    torch.testing.assert_close(low.gather(1, other[:, None]), expected)


def test_published_forms_of_networks_can_be_bounded() -> None:
    x = images(2, (3, 32, 32)).float()
    for name in ("byobnet_tiny", "cifar_resnet20"):
        model = prepare(registry.build(ModelSource, name).build(num_classes=10, size=32), x)
        ops = operations(model, x)
        y = model(x).argmax(dim=1)
        assert bool((margins(ops, intervals(ops, Ball(x, "linf", 0.0)), y) > -1e-3).all()), name


def test_what_cannot_be_bounded_is_named() -> None:
    x = kit.grey_images(2)

    def refusal(net: nn.Module) -> str:
        model = Network(net, num_classes=10).eval()
        with pytest.raises(NotApplicable) as caught:
            operations(model, x)
        return str(caught.value)

    assert "layer '_0' (GELU)" in refusal(nn.Sequential(nn.GELU(), nn.Flatten(), nn.Linear(192, 10)))
    assert "(softmax)" in refusal(Softmax())
    assert "cannot be traced" in refusal(Branching())
    with pytest.raises(NotApplicable, match="Wrapped cannot be bounded"):
        operations(Wrapped(kit.cnn_model()), x)


class Softmax(kit.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(dim=1)


class Branching(kit.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 0 else -x)


def test_gradients_of_interval_bounds_reach_the_weights() -> None:
    model = convolutional(0).train().requires_grad_(True)
    x = images(2, (3, 6, 6))
    model.eval()
    ops: list[Op] = operations(model, x)
    low = margins(ops, intervals(ops, Ball(x, "linf", 0.01)), torch.tensor([0, 1]))
    low[torch.isfinite(low)].sum().backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in model.parameters())
