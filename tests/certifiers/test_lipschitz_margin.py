"""The product of spectral norms: exact on linear chains, never below the norm of a layer, and clear about the rest."""

from __future__ import annotations

import pytest
import torch
from siegebench.certifiers.lipschitz_margin import _bound, _spread, constant
from torch import Tensor, nn

from siegebench import registry
from siegebench.classifier import Classifier, ModelCard, Network, Wrapped
from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from siegebench.threat import Norm
from siegebench.types import Certifier


def network(*layers: nn.Module, std: float = 1.0) -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for layer in layers:
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()  # type: ignore[operator]
    net = Network(nn.Sequential(*layers), num_classes=2, std=(std,), card=ModelCard(name="net")).double().eval()
    return net.requires_grad_(False)


def test_the_radius_of_a_chain_in_closed_form() -> None:
    first, last = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    model = network(nn.Flatten(), first, nn.Sequential(nn.ReLU(), last), std=0.5)
    first.weight.copy_(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
    last.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    x = torch.tensor([0.5, 0.25], dtype=torch.float64).view(1, 1, 1, 2)
    certifier = registry.build(Certifier, "lipschitz_margin")
    exact = (3.0 - 1.0) / (2.0**0.5 * 2 * 3 * 2)  # z = (3, 1); 1 / std, and the norms 3 and 2
    found = certifier(model, x, "l2", [0.99 * exact, 1.01 * exact], Draws(0, torch.zeros(1, dtype=torch.long)))
    assert found.holds[:, 0].tolist() == [True, False]
    assert constant(model, x, 4096) == pytest.approx(12.0)
    assert constant(model, x, 1) == pytest.approx(2 * 10**0.5 * 5**0.5)  # Frobenius norms


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(2, 4, 3, stride=2, groups=2), nn.Conv2d(2, 3, 2, dilation=2),
        nn.BatchNorm2d(2), nn.AvgPool2d(3, 1, 1), nn.AvgPool2d(2), nn.MaxPool2d(3, 2, 1), nn.AdaptiveAvgPool2d(4),
        nn.AdaptiveAvgPool2d((1, None)), nn.Tanh(), nn.Sequential(nn.Flatten(), nn.Linear(72, 5))[1],
    ],
    ids=repr,
)  # fmt: skip
def test_no_layer_stretches_more_than_its_bound(layer: nn.Module) -> None:
    g = torch.Generator().manual_seed(0)
    layer = network(layer).net[0]  # type: ignore[index]
    if isinstance(layer, nn.BatchNorm2d):
        layer.running_var.copy_(torch.tensor([0.1, 4.0]))
    x = torch.randn((1, 72) if isinstance(layer, nn.Linear) else (1, 2, 6, 6), generator=g).double()
    j = torch.autograd.functional.jacobian(layer, x).reshape(layer(x).numel(), x.numel())
    assert float(torch.linalg.matrix_norm(j, 2)) <= _bound(layer, 4096) * _spread(layer, x) + 1e-9


@pytest.mark.parametrize(
    ("layer", "told"),
    [
        (nn.Softmax(dim=1), "Softmax"), (nn.LeakyReLU(3.0), "LeakyReLU"), (nn.AdaptiveAvgPool2d(9), "larger"),
        (nn.AvgPool2d(2, divisor_override=1), "divisor_override"),
    ],
)  # fmt: skip
def test_layers_without_a_bound_are_named(layer: nn.Module, told: str) -> None:
    with pytest.raises(NotApplicable, match=told):
        constant(network(layer, nn.Flatten()), torch.zeros(1, 3, 6, 6).double(), 4096)


class Sure(Classifier):
    """Says class 1, and proves a radius of 0.5."""

    def __init__(self) -> None:
        super().__init__()
        self.num_classes, self.card = 2, ModelCard(name="sure")

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        return torch.tensor([[0.0, 1.0]]).expand(len(x), 2)

    def certified_radius(self, x: Tensor, norm: Norm) -> Tensor:
        return torch.full((len(x),), 0.5)


def test_a_model_that_proves_its_radius_is_asked_and_a_wrapper_around_it_is_not() -> None:
    certifier, x, one = (
        registry.build(Certifier, "lipschitz_margin"),
        torch.zeros(1, 3, 2, 2),
        Draws(0, torch.zeros(1).long()),
    )
    found = certifier(Sure(), x, "l2", [0.4, 0.6], one)
    assert (found.prediction.tolist(), found.holds[:, 0].tolist()) == ([1], [True, False])
    with pytest.raises(NotApplicable, match="Wrapped"):
        certifier(Wrapped(Sure()), x, "l2", [0.4], one)
