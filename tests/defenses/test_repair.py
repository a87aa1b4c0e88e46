"""Layers are found by the tensors that pass between them, in any architecture; others are refused in one line."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from siegebench import registry
from siegebench.classifier import Network
from siegebench.data import ImageSet
from siegebench.errors import NotApplicable
from siegebench.types import Defense

from . import planted


class PreActivation(nn.Module):
    """norm, conv, norm, conv, and a sum: the second norm normalises the first convolution, the first one the stem."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 1, 1)
        self.norm1, self.conv1 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, 1, 1)
        self.norm2, self.conv2 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, 1, 1)
        self.last, self.fc = nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x) + 0.0  # another tensor than the output of the stem
        h = h + self.conv2(self.norm2(self.conv1(self.norm1(h).relu())).relu())
        out: Tensor = self.fc(self.last(h).relu().mean(dim=(2, 3)))
        return out


def test_pairs_follow_the_tensors() -> None:
    net = PreActivation()
    module = __import__(registry.entry_class("defense", "clp").__module__, fromlist=["x"])
    pairs = module.conv_norm_pairs(Network(net, num_classes=2), torch.rand(2, 3, 8, 8))
    assert [(conv is net.conv1, norm is net.norm2) for conv, norm in pairs] == [(True, True)]


@pytest.mark.parametrize("name", ["clp", "anp"])
def test_a_network_without_batch_norms_is_refused(name: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(NotApplicable, match="batch norm"):
        apply(name, Network(net, num_classes=2))


@pytest.mark.parametrize("name", ["fine_pruning", "nad"])
def test_a_network_without_feature_maps_is_refused(name: str) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(NotApplicable, match=r"feature maps|convolution"):
        apply(name, Network(net, num_classes=2))


def test_fine_pruning_finds_the_head_of_timm_networks() -> None:
    module = __import__(registry.entry_class("defense", "fine_pruning").__module__, fromlist=["x"])
    for name in ("test_byobnet", "test_resnet", "test_efficientnet"):
        net = timm.create_model(name, num_classes=10)
        layer, channels = module.head(Network(net, num_classes=10), torch.rand(2, 3, 32, 32))
        assert layer is net.get_classifier()
        assert layer.in_features == channels


def apply(name: str, model: Network) -> None:
    data: ImageSet = planted.data()
    assert data.num_classes == 2
    registry.build(Defense, name).apply(model.eval(), planted.granted("clean", "val"), planted.ONE)
