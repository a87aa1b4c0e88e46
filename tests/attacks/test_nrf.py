"""NRF: the channels that it finds, and the direction that they give."""

from __future__ import annotations

import pytest
import torch
from siegebench.attacks.fmn import FMN
from siegebench.attacks.nrf import NRF
from torch import Tensor, nn

from siegebench import ops
from siegebench.classifier import Classifier
from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from siegebench.oracle import Oracle
from siegebench.threat import ThreatModel
from tests import kit

from .planted import convolutional, frozen, nearest, run, wrong


class Maps(nn.Module):
    """One convolution that copies the colours, then a tail that the test gives."""

    def __init__(self, tail: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1, bias=False)
        self.tail = tail
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(3)[:, :, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.conv(x))


class Supported(nn.Module):
    """Noise in the first channel speaks for class 0, in the second for class 1; the third does not matter."""

    def forward(self, z: Tensor) -> Tensor:
        spread = (z - z.mean(dim=(2, 3), keepdim=True)).abs().mean(dim=(2, 3))
        level = (z.mean(dim=(2, 3)) - 0.5).abs()
        return torch.stack([1 + 4 * level[:, 0], 4 * level[:, 1]], dim=1) + 0 * spread[:, :2]


def test_nrf_tells_channels_that_noise_supports_from_those_that_it_destroys() -> None:
    model = frozen(Maps(Supported()), 2)
    x, y = kit.grey_images(6), torch.zeros(6, dtype=torch.long)
    draws = Draws(0, torch.arange(6))
    oracle = Oracle(model, ThreatModel(norm="l2", eps=0.5), draws)
    robust = NRF()._robust(oracle, x, y, draws)
    assert robust.shape == (6, 3, 1, 1)
    assert bool(robust[:, 0].all())
    assert not bool(robust[:, 1].any())
    assert oracle.ledger.forwards.tolist() == [201] * 6
    assert oracle.ledger.backwards.tolist() == [200] * 6


@pytest.mark.parametrize("towards", [True, False])
def test_nrf_adds_the_unit_vector_of_the_chosen_channels_to_the_gradient(cnn: Classifier, towards: bool) -> None:
    model, x = cnn.double(), kit.grey_images(5, 16).double()
    y, mask = model(x).argmax(1), torch.rand(5, 16, 1, 1, generator=torch.Generator().manual_seed(0)) < 0.5
    attack = NRF(towards=towards)
    head, tail = model.net[:3], model.net[3:]
    for i in range(5):
        leaf = x[i : i + 1].clone().requires_grad_(True)
        z = head(leaf)
        f = 0.1 * (-ops.margin(tail(z), y[i : i + 1])).clamp(min=0)
        (g,) = torch.autograd.grad(f.sum(), z, retain_graph=True)
        u = (g * mask[i]) / (g * mask[i]).norm()
        (expected,) = torch.autograd.grad(z, leaf, g + u if towards else g - u)
        first = attack_gradient(attack, model, x[i : i + 1], y[i : i + 1], mask[i : i + 1])
        torch.testing.assert_close(first, expected, rtol=1e-9, atol=1e-12)


def attack_gradient(attack: NRF, model: Classifier, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    from functools import partial

    from siegebench.attacks.nrf import _edited

    oracle = Oracle(model, ThreatModel(norm="l2", eps=0.5), Draws(0, torch.arange(len(x))))
    tap = partial(_edited, edit=partial(attack._lean, mask=mask))
    return oracle.tapped(tap).gradient(x, partial(attack._hinge, y=y))[0]


def test_nrf_breaks_a_network_and_every_variant_goes_its_own_way() -> None:
    (model, x, y), out = convolutional(4), {}
    for channels, towards in (("non_robust", True), ("non_robust", False), ("robust", True)):
        attack = NRF(channels=channels, towards=towards, steps=100, noise_steps=50, noise_lr=0.4)  # type: ignore[arg-type]
        out[channels, towards], oracle = run(attack, model, x, y)
        assert int(oracle.ledger.forwards.max()) <= 151
        assert torch.equal(oracle.ledger.forwards, oracle.ledger.backwards + 1)
    best, _ = run(FMN(), model, x, y)
    assert bool(wrong(model, out["non_robust", True], y).all())
    assert float((ops.size(out["non_robust", True] - x, "l2") / ops.size(best - x, "l2")).median()) < 1.5
    assert not torch.equal(out["non_robust", True], out["non_robust", False])
    assert not torch.equal(out["non_robust", True], out["robust", True])


def test_nrf_on_a_model_without_convolutions_uses_the_image_as_features(linear: Classifier) -> None:
    x = kit.grey_images(8)
    y = linear(x).argmax(1)
    x_adv, _ = run(NRF(), linear, x, y)
    assert bool(wrong(linear, x_adv, y).all())
    assert float((ops.size(x_adv - x, "l2") / nearest(linear, x, y, "l2")).median()) < 1.2


def test_nrf_refuses_maps_without_extent() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten(), nn.Linear(4, 3))
    model, x = frozen(net, 3), kit.grey_images(2)
    with pytest.raises(NotApplicable, match="single numbers"):
        run(NRF(), model, x, model(x).argmax(1))
