"""The small residual networks for CIFAR, with published weights if a file is given."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from siegebench.classifier import ModelCard, Network
from siegebench.data import Size
from siegebench.train import Recipe
from siegebench.weights import load_weights, save_weights, weights_hash

from ._checkpoint import Channels, Checkpointed

RECIPE = Recipe(epochs=20, lr=5e-3, augment="crop_flip")
IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)
IMAGENET_STD: Channels = (0.229, 0.224, 0.225)


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters (option A: subsample, zero-pad the new channels)."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.stride, self.pad = stride, (outside - inside) // 2

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        if self.pad:
            shortcut = F.pad(shortcut, (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(out + shortcut)


class ResNet(nn.Module):
    """conv - 3 stages of n blocks with 16, 32, 64 channels - global average - linear; depth 6n + 2."""

    def __init__(self, depth: int, num_classes: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, 1, blocks)
        self.layer2 = _stage(16, 32, 2, blocks)
        self.layer3 = _stage(32, 64, 2, blocks)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits


def _stage(inside: int, outside: int, stride: int, blocks: int) -> nn.Sequential:
    rest = (Block(outside, outside, 1) for _ in range(blocks - 1))
    return nn.Sequential(Block(inside, outside, stride), *rest)


@dataclass(frozen=True, kw_only=True)
class CifarResNet(Checkpointed):
    """Residual network for 32x32 images (He, Zhang, Ren, Sun, CVPR 2016, section 4.2), normalised as on ImageNet.

    Attributes:
        depth: 6n + 2 layers.
        recipe: for training.

    Differs from the paper: normalised per channel with the ImageNet statistics, as the published weights expect,
    instead of subtracting the mean image. Weight decay and schedule are those of the recipe.
    """

    depth: Literal[20, 32, 44, 56, 110] = 20
    recipe: Recipe = RECIPE

    def build(self, *, num_classes: int, size: Size) -> Network:
        make = partial(ResNet, self.depth, num_classes)
        net = make()
        mean, std, source, digest = self.loaded(net, IMAGENET_MEAN, IMAGENET_STD)
        card = ModelCard(
            name=f"cifar_resnet{self.depth}",
            architecture=f"ResNet-{self.depth} (16-32-64, option A)",
            source=source,
            weights=digest,
            preprocessing={"mean": mean, "std": std},
        )
        return Network(net, num_classes=num_classes, mean=mean, std=std, card=card, rebuild=make).eval()


def convert(source: str | Path, target: str | Path) -> str:
    """Convert a published `.th` file to safetensors; returns the hash of the weights, which does not change."""
    state = load_weights(source)
    save_weights(target, state)
    return weights_hash(state)
