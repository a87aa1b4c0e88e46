"""LBDN: its layers are 1-Lipschitz and no less, and its radii are those of its margins."""

from __future__ import annotations

import pytest
import torch
from siegebench.defenses._sandwich import OrthogonalLinear, SandwichConv, SandwichLinear, cayley
from torch import Tensor, nn

from siegebench import registry
from siegebench.classifier import Classifier
from siegebench.errors import NotApplicable
from siegebench.oracle import Oracle
from siegebench.threat import ThreatModel
from siegebench.train import accuracy
from siegebench.types import Attack

from .two_features import ONE, build, granted, model, two_features

TRAINED = {"size": 2, "hidden": [8, 8], "recipe": {
    "epochs": 20, "batch": 64, "lr": 0.02, "weight_decay": 0.0, "warmup": 0.4, "augment": "none"
}}  # fmt: skip


def fitted(gamma: float = 4.0, **parameters: object) -> Classifier:
    deployed: Classifier = build("lbdn", gamma=gamma, **{**TRAINED, **parameters}).apply(
        model(), granted(two_features(256)), ONE
    )
    return deployed.requires_grad_(False)


def jacobian(layer: nn.Module, x: Tensor) -> Tensor:
    """Of one input [1, ...], as a matrix."""
    j = torch.autograd.functional.jacobian(layer, x)
    return j.reshape(layer(x).numel(), x.numel())  # type: ignore[no-any-return]


def layers() -> list[tuple[nn.Module, Tensor]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made: list[nn.Module] = [SandwichLinear(12, 5), SandwichLinear(5, 9), OrthogonalLinear(6, 3)]
        made += [SandwichConv(3, 4, 4, 1), SandwichConv(2, 6, 6, 2)]
        inputs = [
            torch.randn(1, 12),
            torch.randn(1, 5),
            torch.randn(1, 6),
            torch.randn(1, 3, 4, 4),
            torch.randn(1, 2, 6, 6),
        ]
        for layer in made:
            for name, p in layer.named_parameters():
                if name in ("psi", "bias"):
                    nn.init.normal_(p, std=0.5)
    return [(layer.double(), x.double()) for layer, x in zip(made, inputs, strict=True)]


@pytest.mark.parametrize("shape", [(4, 9), (3, 5, 8)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_cayley_gives_rows_of_unit_length(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    a, b = cayley(torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0)))
    eye = torch.eye(shape[-2], dtype=dtype).expand(*shape[:-1], shape[-2])
    torch.testing.assert_close(a @ a.mH + b @ b.mH, eye)


@pytest.mark.parametrize("index", range(5))
def test_no_slope_of_a_layer_exceeds_one(index: int) -> None:
    layer, x = layers()[index]
    layer.refresh()  # type: ignore[operator]
    trained, deployed = layer.train()(x), layer.eval()(x)
    torch.testing.assert_close(trained, deployed)
    largest = max(float(torch.linalg.matrix_norm(jacobian(layer, s * x), 2)) for s in (-2, -0.3, 0.3, 1, 5))
    assert 0.3 < largest <= 1 + 1e-9


def test_convolutions_are_circular_ones_of_their_kernel() -> None:
    """B of a 1x1 image-wide delta: the response to a shifted image is the shifted response."""
    layer, x = layers()[3]
    shifted = layer.eval()(x.roll((1, 2), (2, 3)))
    torch.testing.assert_close(shifted, layer(x).roll((1, 2), (2, 3)))
    small = jacobian(lambda h: layer._apply_matrix(layer.deployed()[1], h), x)  # type: ignore[operator,arg-type]
    assert torch.linalg.matrix_norm(small, 2) <= 1 + 1e-9


@pytest.mark.parametrize("more", [{}, {"head": "linear"}, {"convolutions": [4, 4], "hidden": [6], "size": 4}])
def test_the_network_is_gamma_lipschitz_and_its_radius_the_margin(more: dict[str, object]) -> None:
    net = fitted(3.0, **more, recipe={"epochs": 2, "augment": "none"}).double()
    x = two_features(6).pixels(dtype=torch.float64)
    for i in range(len(x)):
        assert float(torch.linalg.matrix_norm(jacobian(net.features, x[i : i + 1]), 2)) <= 3.0 * (1 + 1e-5)
    z, radius = net(x), net.certified_radius(x, "l2")
    apart = (net.rows()[0] - net.rows()[1]).norm()
    torch.testing.assert_close(radius, (z[:, 0] - z[:, 1]).abs() / (3 * apart), rtol=1e-3, atol=1e-4)
    assert net.certified_radius(x, "linf") is None


def test_it_learns_within_its_bound_and_attacks_stay_outside_the_radii() -> None:
    data = two_features(256)
    loose, tight = fitted(8.0), fitted(0.2)
    assert accuracy(loose, data) >= accuracy(tight, data)
    assert accuracy(loose, data) > 0.95
    x, y = data.pixels(), data.labels
    attack = registry.build(Attack, {"name": "pgd", "loss": "margin", "steps": 50})
    radius = loose.certified_radius(x, "l2")
    assert radius is not None
    for quantile in (0.1, 0.5, 0.9):
        eps = float(radius.quantile(quantile))
        rows = (radius > eps).nonzero().squeeze(1)
        label, threat = loose(x[rows]).argmax(dim=1), ThreatModel(norm="l2", eps=eps)
        draws = ONE[torch.zeros(len(rows), dtype=torch.long)]
        x_adv = attack(Oracle(loose, threat, draws), x[rows], label, threat, draws)
        assert bool((loose(x_adv).argmax(dim=1) == label).all())
        certified = (radius > eps) & (loose(x).argmax(dim=1) == y)
        assert int(certified.sum()) <= len(rows)
    far = ThreatModel(norm="l2", eps=3 * float(radius.max()))
    draws = ONE[torch.zeros(len(x), dtype=torch.long)]
    found = attack(Oracle(loose, far, draws), x, loose(x).argmax(dim=1), far, draws)
    assert float((loose(found).argmax(dim=1) != loose(x).argmax(dim=1)).double().mean()) > 0.5  # radii are not idle


def measured(net: Classifier, x: Tensor, restarts: int = 10, steps: int = 200) -> float:
    """The largest |h(x + d) - h(x)| / |d| that Adam finds, of the features h."""
    g = torch.Generator().manual_seed(0)
    start = x.repeat(restarts, 1, 1, 1)
    d = (0.1 * torch.randn(start.shape, generator=g)).requires_grad_(True)
    adam = torch.optim.Adam([d], 0.02)
    best = 0.0
    for _ in range(steps):
        ratio = (net.features(start + d) - net.features(start)).norm(dim=1) / d.flatten(1).norm(dim=1)
        best = max(best, float(ratio.detach().max()))
        adam.zero_grad()
        (-ratio.sum()).backward()
        adam.step()
    return best


def test_the_measured_constant_is_close_to_the_bound() -> None:
    found = measured(fitted(3.0), two_features(8).pixels())
    assert 1.5 < found <= 3.0 * (1 + 1e-4)


def test_images_that_do_not_fit_are_refused() -> None:
    net = build("lbdn", size=8).structure(model())
    assert net(torch.zeros(1, 3, 8, 5)).shape == (1, 2)
    with pytest.raises(NotApplicable, match="size: 9"):
        net(torch.zeros(1, 3, 9, 8))
    with pytest.raises(NotApplicable, match="hidden is empty"):
        build("lbdn", hidden=[]).structure(model())
