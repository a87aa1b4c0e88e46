"""Pointing on planted models, attribution maps against captum, and curves of insertion and deletion in closed form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from siegebench.measures import _attributions as attributions
from siegebench.measures.pointing import Pointing, in_cell, mosaics
from torch import Tensor, nn

from siegebench.classifier import Network
from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from siegebench.oracle import Oracle
from siegebench.threat import ThreatModel
from tests import kit

from .planted import affine, measured


def oracle_of(model: Any, n: int) -> tuple[Oracle, Draws]:
    draws = Draws(0, torch.arange(n))
    return Oracle(model, ThreatModel(), draws), draws


def coloured(n: int, size: int = 16) -> tuple[Tensor, Tensor]:
    """Images of six flat greys, one for each class."""
    y = torch.arange(n) % 6
    return (0.1 + y / 10).view(-1, 1, 1, 1).expand(n, 3, size, size).contiguous(), y


@pytest.mark.parametrize("size", [16, 17])
def test_mosaics_have_four_classes_and_the_asked_one_in_its_cell(size: int) -> None:
    x, y = coloured(30, size)
    found, cell, classes = mosaics(x, y, Draws(0, torch.arange(20)))
    assert found.shape == (20, 3, size, size)
    assert bool((classes.sort(dim=1).values.diff(dim=1) > 0).all()), "no class twice"
    assert torch.equal(classes[:, 0], y[:20])
    h = size // 2
    middles = torch.stack([found[:, 0, r * h + h // 2, c * h + h // 2] for r in (0, 1) for c in (0, 1)], dim=1)
    torch.testing.assert_close(middles.gather(1, cell[:, None]).squeeze(1), x[:20, 0, 0, 0])
    torch.testing.assert_close(middles.sort(dim=1).values, (0.1 + classes / 10).sort(dim=1).values)
    assert len(cell.unique()) == 4


def test_shares_of_a_cell() -> None:
    h = torch.zeros(3, 8, 8)
    h[0, :4, 4:] = 2.0
    h[1] = 1.0
    assert in_cell(h, torch.tensor([1, 2, 0])).tolist() == [1.0, 0.25, 0.0]


class Spotted(nn.Module):
    """The logit of class k is the area of grey level k, smoothly; an ideal recogniser of `coloured` images."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(0.1 + torch.arange(6) / 10)

    def forward(self, x: Tensor) -> Tensor:
        far = x.mean(dim=1).flatten(1)[:, :, None] - self.level
        return 20 * torch.exp(-((far / 0.03) ** 2)).mean(dim=1)


def test_masks_find_the_asked_cell_and_noise_does_not() -> None:
    x, y = coloured(48)
    model = Network(Spotted(), num_classes=6).eval()
    assert torch.equal(model(x).argmax(dim=1), y)
    oracle, draws = oracle_of(model, 48)
    found = Pointing(images=24, masks=100, points=2)(oracle, x, y, ThreatModel(), draws)
    assert found["metrics"]["rise_pointing"] > 0.4
    assert found["metrics"]["random_pointing"] == pytest.approx(0.25, abs=0.03)
    assert found["metrics"]["mosaic_acc"] == 1
    assert [f["id"] for f in found["flags"]] == ["zero_maps"], "the gradient is zero at each grey level"


class Regions(nn.Module):
    """The logit of class k is the brightness of cell k of a mosaic: input x gradient stays in one cell."""

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[2] // 2, x.shape[3] // 2
        cells = [x[..., r : r + h, c : c + w].mean(dim=(1, 2, 3)) for r in (0, h) for c in (0, w)]
        return torch.stack(cells, dim=1)


def test_gradient_maps_of_a_model_of_regions_stay_in_the_region() -> None:
    x = kit.grey_images(4)
    y = torch.arange(4)
    oracle, draws = oracle_of(Network(Regions(), num_classes=4).eval(), 4)
    for name, method in Pointing(masks=300).methods().items():
        if name in ("grad_cam", "random"):
            continue
        share = in_cell(method(oracle, x, y, draws).clamp(min=0), y)
        assert bool((share > (0.5 if name == "rise" else 0.999)).all()), name


def test_insertion_and_deletion_of_a_model_of_one_pixel_are_exact() -> None:
    """p of the class jumps when the only pixel that matters is shown."""
    weight = torch.zeros(2, 3, 4, 4)
    weight[0, :, 1, 2] = 1e6
    weight[1, :, 1, 2] = -1e6
    x = torch.zeros(1, 3, 4, 4)
    x[0, :, 1, 2] = 1.0
    mean = x.mean()
    model = affine(weight.flatten(1), torch.tensor([-1e6, 1e6]) * (mean + 0.5))  # the mean colour is not enough
    oracle, _ = oracle_of(model, 1)
    first = torch.tensor([[6, *(i for i in range(16) if i != 6)]])
    y = torch.zeros(1, dtype=torch.long)
    insertion, deletion = Pointing(points=16)._curves(oracle, x, y, first)
    assert insertion == pytest.approx(1 - 1 / 32)  # 0 without pixels, 1 from the first of 16 on
    assert deletion == pytest.approx(1 / 32)
    insertion, deletion = Pointing(points=16)._curves(oracle, x, y, first.flip(1))
    assert insertion == pytest.approx(1 / 32)
    assert deletion == pytest.approx(1 - 1 / 32)


def test_attributions_agree_with_captum() -> None:
    captum = pytest.importorskip("captum.attr", reason="captum is in the extra dev")
    model, x = kit.cnn_model(seed=2).double(), kit.grey_images(5, 16).double()
    y = torch.tensor([0, 3, 3, 7, 9])
    oracle, draws = oracle_of(model, 5)
    last = [m for m in model.modules() if isinstance(m, nn.Conv2d)][-1]
    cam = captum.LayerGradCam(model, last).attribute(x.clone().requires_grad_(), y, relu_attributions=True)
    cam = nn.functional.interpolate(cam, (16, 16), mode="bilinear", align_corners=False)
    integrated = captum.IntegratedGradients(model).attribute(x, target=y, n_steps=32, method="riemann_middle")
    theirs = {
        attributions.gradient: captum.Saliency(model).attribute(x.clone().requires_grad_(), y, abs=False).sum(1),
        attributions.input_x_gradient: captum.InputXGradient(model).attribute(x.clone().requires_grad_(), y).sum(1),
        attributions.integrated_gradients: integrated.sum(1),
        attributions.grad_cam: cam[:, 0],
    }
    for method, exact in theirs.items():
        torch.testing.assert_close(method(oracle, x, y, draws), exact.detach(), msg=str(method))
    assert float(cam.abs().sum()) > 0


def test_integrated_gradients_add_up_to_the_difference_of_logits() -> None:
    model, x, y = kit.cnn_model(seed=2).double(), kit.grey_images(3, 16).double(), torch.tensor([1, 2, 3])
    oracle, draws = oracle_of(model, 3)
    total = attributions.integrated_gradients(oracle, x, y, draws, points=400).sum(dim=(1, 2))
    gap = (model(x) - model(torch.zeros_like(x))).gather(1, y[:, None]).squeeze(1)
    torch.testing.assert_close(total, gap, atol=1e-3, rtol=1e-3)


def test_smooth_gradients_of_a_linear_model_are_its_gradient() -> None:
    model, x, y = kit.linear_model(), kit.grey_images(4), torch.arange(4)
    oracle, draws = oracle_of(model, 4)
    smooth = attributions.smooth_gradient(oracle, x, y, draws)
    torch.testing.assert_close(smooth, attributions.gradient(oracle, x, y, draws))


def test_two_classes_are_refused() -> None:
    with pytest.raises(NotApplicable, match="2 are classified correctly"):
        measured(Pointing(), kit.linear_model(), kit.grey_images(4), torch.arange(4) % 2)


def test_masks_are_open_half_of_the_time() -> None:
    x = torch.ones(200, 3, 14, 14)
    m = attributions._mask(x, Draws(0, torch.arange(200)), 0)
    assert m.shape == (200, 14, 14)
    assert 0 <= float(m.min()) <= float(m.max()) <= 1
    assert float(m.mean()) == pytest.approx(attributions.KEPT, abs=0.02)
    assert float(m.var(dim=0).min()) > 0.05, "every pixel is sometimes closed"
