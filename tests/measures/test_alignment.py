"""Alignment in closed form on linear models; the scale of the logits does not matter, and the control is near 0."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from siegebench.measures.alignment import high_share
from torch import Tensor

from siegebench import ops
from siegebench.classifier import Classifier, Network
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.threat import ThreatModel
from tests import kit

from .planted import affine, built, measured, two_classes


def test_alignment_of_a_linear_model_is_exact() -> None:
    model, x, y, way = two_classes()
    got, oracle = measured(built("alignment"), model, x, y)
    towards = torch.where(y[:, None] == 1, way, -way)
    centred = (x - x.mean(dim=(2, 3), keepdim=True)).flatten(1)
    exact = F.cosine_similarity(towards, centred)
    assert got["cosine"] == pytest.approx(float(exact.mean()), abs=1e-6)
    assert got["cosine_abs"] == pytest.approx(float(exact.abs().mean()), abs=1e-6)
    h = way.view(3, 8, 8).abs().sum(dim=0)
    rough = (h.diff(dim=0).abs().mean() + h.diff(dim=1).abs().mean()) / 2 / h.mean()
    assert got["roughness"] == pytest.approx(float(rough), rel=1e-5)
    assert got["central"] == pytest.approx(float(h[2:6, 2:6].sum() / h.sum()), rel=1e-5)
    assert oracle.ledger.backwards.tolist() == [1] * 20
    assert "cosine_untrained" not in got, "a model that cannot be built anew has no control"


def test_a_model_whose_weights_are_the_image_is_aligned_whatever_the_scale_of_its_logits() -> None:
    x = kit.grey_images(1)
    own = (x - x.mean(dim=(2, 3), keepdim=True)).flatten()
    y = torch.zeros(1, dtype=torch.long)
    for scale in (1e-3, 1.0, 1e3):
        got, _ = measured(built("alignment"), affine(scale * torch.stack([own, -own])), x, y)
        assert got["cosine"] == pytest.approx(1.0, abs=1e-5)
        got, _ = measured(built("alignment"), affine(scale * torch.stack([-own, own])), x, y)
        assert got["cosine"] == pytest.approx(-1.0, abs=1e-5)


def test_an_untrained_network_is_hardly_aligned() -> None:
    model, x = kit.cnn_model(seed=5), kit.grey_images(32)
    got, _ = measured(built("alignment"), model, x, model(x).argmax(dim=1))
    assert abs(got["cosine"]) < 0.1
    assert abs(got["cosine_untrained"]) < 0.1


def test_frequencies_are_told_apart() -> None:
    axis = torch.arange(16, dtype=torch.float64)
    waves = [torch.cos(2 * torch.pi * k * axis / 16).expand(1, 3, 16, 16) for k in (1, 7)]
    assert high_share(waves[0]).item() == pytest.approx(0.0, abs=1e-9)
    assert high_share(waves[1]).item() == pytest.approx(1.0, abs=1e-9)
    assert high_share(waves[0] + waves[1]).item() == pytest.approx(0.5, abs=1e-9)


def test_images_without_a_gradient_are_left_out_and_flagged() -> None:
    x, y = kit.grey_images(4), torch.zeros(4, dtype=torch.long)
    model = affine(torch.zeros(2, 192), torch.tensor([1.0, 0.0]))
    found = of(model, x, y)
    assert found["metrics"] == {}
    assert [f["id"] for f in found["flags"]] == ["zero_maps"]
    assert "4 of 4" in found["flags"][0]["evidence"]

    class Half(torch.nn.Module):
        """Flat where the first value is low."""

        def forward(self, x: Tensor) -> Tensor:
            s = F.relu(x[:, 0, 0, 0] - 0.5) * x.flatten(1).sum(dim=1)
            return torch.stack([s + 1, 0 * s], dim=1)

    x[:2, 0, 0, 0], x[2:, 0, 0, 0] = 0.7, 0.2
    found = of(Network(Half(), num_classes=2).eval(), x, y)
    assert "2 of 4" in found["flags"][0]["evidence"]
    assert found["metrics"]["cosine"] == pytest.approx(float(found["arrays"]["cosine"][:2].mean()))


def of(model: Classifier, x: Tensor, y: Tensor) -> dict[str, dict[str, float]]:
    threat, draws = ThreatModel(), Draws(0, torch.arange(len(x)))
    found: dict[str, dict[str, float]] = built("alignment")(Oracle(model, threat, draws), x, y, threat, draws)
    assert found["pictures"].shape == (len(x), 3, 8, 17)  # type: ignore[attr-defined]
    assert bool((ops.flat(found["pictures"]) >= 0).all())  # type: ignore[arg-type]
    return found
