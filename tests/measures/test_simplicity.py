"""Roughness of kernels, noise that passes a convolution, and channels of one class, in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from siegebench.measures.simplicity import entropy, roughness
from torch import nn

from siegebench.classifier import Network
from siegebench.errors import NotApplicable
from tests import kit

from .planted import built, measured


def test_roughness_of_known_kernels() -> None:
    flat, board = torch.ones(1, 1, 4, 4), torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(2, 2)[None, None]
    assert roughness(flat) == 0
    assert roughness(board) == pytest.approx(2.0)
    assert roughness(100 * board) == pytest.approx(2.0)
    drawn = torch.randn(64, 16, 3, 3, generator=torch.Generator().manual_seed(0))
    assert roughness(drawn) == pytest.approx(math.sqrt(2), rel=0.05)
    assert roughness(torch.cat([flat, torch.zeros(1, 1, 4, 4), board])) == pytest.approx(1.0), "kernels of 0 have none"


def test_entropy_of_labels() -> None:
    found = entropy(torch.tensor([[0, 0, 0, 0], [0, 1, 0, 1], [0, 1, 2, 3]]), 4)
    torch.testing.assert_close(found, torch.tensor([0.0, math.log(2), math.log(4)]).double())


def net(kernel: torch.Tensor) -> Network:
    """One convolution that applies this kernel to each colour, in two channels."""
    conv = nn.Conv2d(3, 2, kernel.shape[-1], padding="same", bias=False)
    with torch.no_grad():
        conv.weight.copy_(kernel.expand_as(conv.weight))
    return Network(nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten()), num_classes=2).eval()


def smooth_images(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Slopes; those of class 1 are brighter."""
    y = torch.arange(n) % 2
    slope = torch.linspace(0.2, 0.4, 16)[None, :] + torch.linspace(0, 0.1, 16)[:, None]
    return slope.expand(n, 3, 16, 16) + 0.3 * y.view(-1, 1, 1, 1), y


def test_a_smooth_kernel_passes_less_noise_and_a_channel_may_answer_for_one_class() -> None:
    x, y = smooth_images(60)
    mean, edge = torch.full((5, 5), 0.04), torch.zeros(5, 5)
    edge[2, 1:4] = torch.tensor([-1.0, 2.0, -1.0])
    smooth, rough = (measured(built("simplicity"), net(k), x, y)[0] for k in (mean, edge))
    assert smooth["kernel_roughness"] < rough["kernel_roughness"]
    assert smooth["noise_passed_first"] < rough["noise_passed_first"]
    assert smooth["class_entropy"] == 0, "the brightest 20 are of class 1"
    assert smooth["class_entropy_chance"] > 0.5
    silent, _ = measured(built("simplicity", sigma=1e-7), net(mean), x, y)
    assert silent["noise_passed_first"] == pytest.approx(1.0, abs=1e-3)


def test_a_model_without_convolutions_is_refused() -> None:
    with pytest.raises(NotApplicable, match="this model has none"):
        measured(built("simplicity"), kit.linear_model(), kit.grey_images(2), torch.zeros(2, dtype=torch.long))
