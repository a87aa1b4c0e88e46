"""Inversion: PSNR in closed form, and features that hold the image, or nothing of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from siegebench.measures.inversion import Decoder, Inversion, feature_maps, psnr
from torch import Tensor, nn

from siegebench.classifier import Classifier, Network
from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.threat import ThreatModel
from tests import kit

from .planted import affine


def test_psnr_is_exact() -> None:
    x = torch.full((3, 3, 4, 4), 0.5)
    other = x + torch.tensor([0.1, 0.01, 0.0]).view(-1, 1, 1, 1)
    torch.testing.assert_close(psnr(x, other), torch.tensor([20.0, 40.0, 100.0]).double(), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("shape", "size"), [((8, 5, 5), (3, 32, 32)), ((4, 1, 1), (1, 28, 28)), ((3, 16, 16), (3, 16, 16))]
)
def test_the_decoder_makes_images_of_the_right_size(shape: tuple[int, ...], size: tuple[int, ...]) -> None:
    image = Decoder(shape, size).eval()(torch.randn(2, *shape))
    assert image.shape == (2, *size)
    assert bool(((image >= 0) & (image <= 1)).all())


def network(keeps: bool) -> Classifier:
    """The last convolution copies the image, or multiplies it by 0."""
    conv = nn.Conv2d(3, 3, 1, bias=False)
    with torch.no_grad():
        conv.weight.copy_(float(keeps) * torch.eye(3)[:, :, None, None])
    net = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
    return Network(net, num_classes=4).eval().requires_grad_(False)


def smooth(n: int) -> ImageSet:
    """Images of one colour each."""
    colour = Draws(3, torch.arange(n)).uniform((3, 1, 1))
    pixels = (255 * colour).round().to(torch.uint8).expand(n, 3, 8, 8).contiguous()
    return ImageSet(pixels, torch.arange(n) % 4, torch.arange(n), 4, "smooth")


def decoded(model: Classifier, data: ImageSet, **more: Any) -> dict[str, float]:
    measure, threat = Inversion(epochs=12, images=96, batch=16, lr=0.01, **more), ThreatModel()
    draws = Draws(0, data.ids)
    lesson = measure.learn(Oracle(model, threat, draws), data, threat, draws)
    x = smooth(116).pixels(slice(96, 116))
    few = Draws(1, torch.arange(len(x)))
    oracle = Oracle(model, threat, few)
    found = measure(oracle, x, torch.zeros(len(x), dtype=torch.long), threat, few, lesson)
    assert oracle.ledger.forwards.tolist() == [1] * len(x)
    return dict(found["metrics"])


def test_features_that_hold_the_image_are_inverted_and_others_are_not() -> None:
    data = smooth(96)
    kept, lost = decoded(network(keeps=True), data), decoded(network(keeps=False), data)
    assert kept["psnr"] > lost["psnr"] + 5
    assert kept["psnr_mean"] == lost["psnr_mean"] == pytest.approx(100.0), "each image has one colour"
    assert lost["psnr"] < 15


def test_feature_maps_pass_gradients_to_the_image() -> None:
    draws, x = Draws(0, torch.arange(2)), kit.grey_images(2).requires_grad_()
    oracle = Oracle(network(keeps=True), ThreatModel(), draws)
    h = feature_maps(oracle, x)
    torch.testing.assert_close(h, x)
    (g,) = torch.autograd.grad(h.square().sum(), x)
    torch.testing.assert_close(g, 2 * x)
    with torch.no_grad():
        assert not feature_maps(oracle, x).requires_grad
    plain: Tensor = feature_maps(Oracle(affine(torch.ones(2, 192)), ThreatModel(), draws), x.detach())
    torch.testing.assert_close(plain, x.detach())  # without convolutions: the images
