"""Layer criticality: nothing for own weights, and one layer that alone matters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from siegebench import registry
from siegebench.classifier import Classifier, Network
from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from siegebench.oracle import Oracle
from siegebench.prepare import prepare
from siegebench.threat import ThreatModel
from siegebench.types import Measure
from tests import kit

criticality: Any = pytest.importorskip("siegebench.measures.layer_criticality")


class Residual(nn.Module):
    """z = A x + B tanh(C x): the second branch is switched off where B is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.b, self.a = nn.Linear(192, 12), nn.Linear(12, 10), nn.Linear(192, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = (x - 0.5).flatten(1)
        out: Tensor = self.a(x) + self.b(self.c(x).tanh())
        return out


def measured(model: Classifier, **parameters: Any) -> dict[str, float]:
    entry, x, threat = (
        registry.build(Measure, {"name": "layer_criticality", **parameters}),
        kit.grey_images(40),
        ThreatModel(),
    )
    draws = Draws(0, torch.arange(40))
    found: dict[str, float] = entry(Oracle(model, threat, draws), x, model(x).argmax(dim=1), threat, draws)["metrics"]
    return found


class _Same(Network):
    """Its untrained copy has the same weights."""

    def fresh(self, seed: int) -> Network:
        return self


def test_own_weights_change_nothing() -> None:
    model = _Same(kit.small_cnn(), num_classes=10).eval().requires_grad_(False)
    found = measured(model)
    assert found["layers"] == 3
    assert found["unused"] == 1
    assert found["kept"] == 1
    assert max(found[name] for name in ("early", "middle", "late")) < 1e-6


def test_a_layer_that_is_switched_off_is_not_used() -> None:
    net = Residual()
    with torch.no_grad():
        net.b.weight.zero_()
        net.b.bias.zero_()
        net.a.weight.normal_(generator=torch.Generator().manual_seed(0)).mul_(3)
    model = Network(net, num_classes=10, rebuild=Residual).eval().requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = measured(model)  # called in the order a, c, b
    assert found["early"] > 0.2
    assert found["middle"] < 1e-6  # c: its output is multiplied by 0
    assert found["centre"] < 0.5
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_figures_by_hand() -> None:
    use = torch.tensor([0.4, 0.0, 0.2, 0.0, 0.1, 0.3], dtype=torch.float64)
    found = criticality.figures(use, torch.tensor([0.5, 1.0, 0.5, 1.0, 1.0, 0.5], dtype=torch.float64), 0.9)
    assert [found[name] for name in ("early", "middle", "late")] == pytest.approx([0.2, 0.1, 0.2])
    assert found["centre"] == pytest.approx((0.2 * 2 / 5 + 0.1 * 4 / 5 + 0.3) / 1.0)
    assert found["unused"] == pytest.approx(1 / 3)
    assert found["kept"] == pytest.approx(0.75 / 0.9)
    assert {"early", "middle", "late"} & set(criticality.figures(use[:1], use[:1], 1.0)) == {"early"}


def test_folded_batch_norms_are_reset_with_their_convolution() -> None:
    def net() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(8, 10),
        )  # fmt: skip

    model = Network(net(), num_classes=10, rebuild=net).fresh(0).eval().requires_grad_(False)
    assert measured(model)["layers"] == 3
    folded = prepare(model, kit.grey_images(4))
    found = measured(folded)
    assert found["layers"] == 2
    assert found["early"] > 0


def test_a_network_that_was_changed_after_it_was_built_is_refused() -> None:
    model = Network(kit.small_cnn(), num_classes=10, rebuild=Residual).eval().requires_grad_(False)
    with pytest.raises(NotApplicable, match="other layers"):
        measured(model)


def test_attacked_images_have_figures_of_their_own() -> None:
    net = Residual()
    model = Network(net, num_classes=10, rebuild=Residual).eval().requires_grad_(False)
    found = measured(model, attack="fgsm", resets=1)
    assert {"early_attacked", "centre_attacked"} <= set(found)
    assert found["early_attacked"] != found["early"]
