"""Gradient norms against the closed form, and images that have no gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siegebench import ops
from siegebench.classifier import Network
from siegebench.threat import Norm

from .planted import DUAL, built, measured, two_classes


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_gradient_norms_of_a_linear_model_are_exact(norm: Norm) -> None:
    model, x, y, way = two_classes()
    got, oracle = measured(built("gradient_norm"), model, x, y, norm)
    steep, margin = float(way.norm(p=DUAL[norm])), ops.margin(model(x), y).abs()
    wrong = 1 - model(x).softmax(dim=1).gather(1, y[:, None]).squeeze(1)
    for name, exact in (("margin_gradient", torch.full((20,), steep)), ("ce_gradient", steep * wrong),
                        ("first_order_distance", margin / steep)):  # fmt: skip
        assert got[f"{name}_mean"] == pytest.approx(float(exact.mean()), rel=1e-4)
        assert got[f"{name}_median"] == pytest.approx(float(exact.quantile(0.5)), rel=1e-4)
        assert got[f"{name}_q95"] == pytest.approx(float(exact.quantile(0.95)), rel=1e-4)
    assert got["zero_gradient_ce"] == got["zero_gradient_margin"] == 0
    assert oracle.ledger.backwards.tolist() == [2] * 20


def test_images_without_a_gradient_are_counted_and_in_no_distance() -> None:
    class Dead(nn.Module):
        """Steep where the first pixel is bright, flat elsewhere."""

        def forward(self, x: Tensor) -> Tensor:
            s = F.relu(x[:, 0, 0, 0] - 0.5) * 4
            return torch.stack([1 + s, torch.zeros_like(s)], dim=1)

    x = torch.full((4, 3, 4, 4), 0.2)
    x[:1, 0, 0, 0] = 0.75
    model = Network(Dead(), num_classes=2).eval()
    got, _ = measured(built("gradient_norm"), model, x, torch.zeros(4, dtype=torch.long))
    assert got["zero_gradient_margin"] == got["zero_gradient_ce"] == 0.75
    assert got["margin_gradient_mean"] == pytest.approx(1.0)  # 4 for one of four
    assert got["first_order_distance_median"] == pytest.approx(0.5)  # margin 2 over slope 4
