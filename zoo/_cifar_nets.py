"""Residual networks for 32x32 images, with the names of weights that published robust checkpoints use.

`wrn-28-10` is the wide residual network of depth 28 and width 10; `swish-wrn-28-10` the variant with SiLU and padding
at the right and bottom only where the stride is 2; `resnet-18` and `-50` have a first layer of 3x3 without pooling;
`preact-18` is the pre-activation network, `preact-18-raw` the variant whose shortcuts take the input before the
activation and that has no batch norm before the last layer; `swish-preact-18` has SiLU and shortcuts of 3x3.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from siegebench.errors import did_you_mean

Activation = Callable[[Tensor], Tensor]
NAMES = ("wrn-28-10", "swish-wrn-28-10", "resnet-18", "resnet-50", "preact-18", "preact-18-raw", "swish-preact-18")
_WIDE = re.compile(r"(swish-)?wrn-(\d+)-(\d+)")


def check(name: str) -> None:
    """Refuse a name that is none of these.

    Raises:
        ValueError: with the nearest name.
    """
    wide = _WIDE.fullmatch(name)
    if wide and ((int(wide[2]) - 4) % 6 or int(wide[2]) < 10 or not 1 <= int(wide[3]) <= 64):
        raise ValueError(f"{name}: expected a depth of 6n + 4 from 10 on, and a width from 1 to 64")
    if not wide and name not in NAMES:
        raise ValueError(f"unknown architecture {name!r}. {did_you_mean(name, NAMES)} Any wrn-DEPTH-WIDTH")


def make(name: str, classes: int, spare: bool = False) -> nn.Module:
    """An untrained network.

    Args:
        spare: it has a second first group of blocks that is never used, as in the code of TRADES; only for `wrn`.
    """
    if wide := _WIDE.fullmatch(name):
        depth, width = int(wide[2]), int(wide[3])
        return SwishWide(classes, depth, width) if wide[1] else WideResNet(classes, depth, width, spare)
    if name == "swish-preact-18":
        return SwishPreAct(classes)
    if name.startswith("preact"):
        return PreActResNet(classes, raw=name.endswith("raw"))
    block, counts = (Bottleneck, (3, 4, 6, 3)) if name == "resnet-50" else (BasicBlock, (2, 2, 2, 2))
    return ResNet(classes, block, counts)


def conv(inside: int, outside: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, kernel, stride, kernel // 2, bias=False)


def group(block: Callable[[int, int, int], nn.Module], inside: int, outside: int, stride: int, n: int) -> nn.Sequential:
    """n blocks, of which the first changes channels and resolution."""
    return nn.Sequential(block(inside, outside, stride), *(block(outside, outside, 1) for _ in range(n - 1)))


class WideBlock(nn.Module):
    """x + W2 relu(BN(W1 relu(BN(x)))); where the channels change, the shortcut is W relu(BN(x))."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inside), conv(inside, outside, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outside), conv(outside, outside, 3)
        self.convShortcut = None if inside == outside else conv(inside, outside, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        x = x if self.convShortcut is None else self.convShortcut(out)
        return x + self.conv2(F.relu(self.bn2(self.conv1(out))))


class Group(nn.Module):
    """Blocks below the name `layer`."""

    def __init__(self, layer: nn.Sequential) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


class WideResNet(nn.Module):
    """Wide residual network (Zagoruyko and Komodakis, BMVC 2016): three groups of (depth - 4) / 6 blocks."""

    def __init__(self, classes: int, depth: int, width: int, spare: bool = False) -> None:
        super().__init__()
        n, wide = (depth - 4) // 6, (16 * width, 32 * width, 64 * width)
        self.conv1 = conv(3, 16, 3)
        self.block1 = Group(group(WideBlock, 16, wide[0], 1, n))
        if spare:
            self.sub_block1 = Group(group(WideBlock, 16, wide[0], 1, n))
        self.block2 = Group(group(WideBlock, wide[0], wide[1], 2, n))
        self.block3 = Group(group(WideBlock, wide[1], wide[2], 2, n))
        self.bn1, self.fc = nn.BatchNorm2d(wide[2]), nn.Linear(wide[2], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        logits: Tensor = self.fc(F.relu(self.bn1(x)).mean(dim=(2, 3)))
        return logits


class SameConv(nn.Conv2d):
    """A convolution of 3x3 that pads as TensorFlow does: with stride 2, at the right and at the bottom only."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__(inside, outside, 3, stride, bias=False)
        self.border = (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, self.border))


class SwishWideBlock(nn.Module):
    """As WideBlock, with SiLU and SameConv."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.batchnorm_0, self.conv_0 = nn.BatchNorm2d(inside), SameConv(inside, outside, stride)
        self.batchnorm_1, self.conv_1 = nn.BatchNorm2d(outside), conv(outside, outside, 3)
        self.shortcut = None if inside == outside else conv(inside, outside, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.silu(self.batchnorm_0(x))
        x = x if self.shortcut is None else self.shortcut(out)
        return x + self.conv_1(F.silu(self.batchnorm_1(self.conv_0(out))))


class Blocks(nn.Module):
    """Blocks below the name `block`."""

    def __init__(self, block: nn.Sequential) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(x)
        return out


class SwishWide(nn.Module):
    """The wide residual network of Gowal et al., "Uncovering the limits of adversarial training", 2020."""

    def __init__(self, classes: int, depth: int, width: int) -> None:
        super().__init__()
        n, channels = (depth - 4) // 6, (16, 16 * width, 32 * width, 64 * width)
        self.init_conv = conv(3, 16, 3)
        self.layer = nn.Sequential(
            *(Blocks(group(SwishWideBlock, channels[i], channels[i + 1], 1 + (i > 0), n)) for i in range(3))
        )
        self.batchnorm, self.logits = nn.BatchNorm2d(channels[3]), nn.Linear(channels[3], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.batchnorm(self.layer(self.init_conv(x))))
        logits: Tensor = self.logits(x.mean(dim=(2, 3)))
        return logits


class PreActBlock(nn.Module):
    """Pre-activation block (He et al., ECCV 2016); `raw`: the shortcut takes x and not relu(BN(x))."""

    def __init__(self, inside: int, outside: int, stride: int, raw: bool = False) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inside), conv(inside, outside, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outside), conv(outside, outside, 3)
        same = stride == 1 and inside == outside
        self.shortcut = None if same else nn.Sequential(conv(inside, outside, 1, stride))
        self.raw = raw

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        x = x if self.shortcut is None else self.shortcut(x if self.raw else out)
        return x + self.conv2(F.relu(self.bn2(self.conv1(out))))


class PreActResNet(nn.Module):
    """The pre-activation ResNet-18; `raw` also leaves out the batch norm before the last layer."""

    def __init__(self, classes: int, raw: bool) -> None:
        super().__init__()

        def block(inside: int, outside: int, stride: int) -> nn.Module:
            return PreActBlock(inside, outside, stride, raw)

        self.conv1 = conv(3, 64, 3)
        self.layer1, self.layer2 = group(block, 64, 64, 1, 2), group(block, 64, 128, 2, 2)
        self.layer3, self.layer4 = group(block, 128, 256, 2, 2), group(block, 256, 512, 2, 2)
        self.bn = None if raw else nn.BatchNorm2d(512)
        self.linear = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        x = x if self.bn is None else F.relu(self.bn(x))
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits


class SwishPreActBlock(nn.Module):
    """As PreActBlock, with SiLU, SameConv, and a shortcut of 3x3 that takes x."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.batchnorm_0, self.conv_2d_1 = nn.BatchNorm2d(inside), SameConv(inside, outside, stride)
        self.batchnorm_1, self.conv_2d_2 = nn.BatchNorm2d(outside), conv(outside, outside, 3)
        self.shortcut = None if stride == 1 and inside == outside else SameConv(inside, outside, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv_2d_1(F.silu(self.batchnorm_0(x)))
        x = x if self.shortcut is None else self.shortcut(x)
        return x + self.conv_2d_2(F.silu(self.batchnorm_1(out)))


class SwishPreAct(nn.Module):
    """The pre-activation ResNet-18 of Rebuffi et al., "Fixing data augmentation to improve adversarial robustness"."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv_2d = conv(3, 64, 3)
        sizes = (64, 64, 128, 256, 512)
        for i in range(4):
            setattr(self, f"layer_{i}", group(SwishPreActBlock, sizes[i], sizes[i + 1], 1 + (i > 0), 2))
        self.batchnorm, self.logits = nn.BatchNorm2d(512), nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_2d(x)
        for i in range(4):
            x = getattr(self, f"layer_{i}")(x)
        logits: Tensor = self.logits(F.silu(self.batchnorm(x)).mean(dim=(2, 3)))
        return logits


class BasicBlock(nn.Module):
    """relu(x + BN(W2 relu(BN(W1 x))))"""

    growth = 1

    def __init__(self, inside: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(inside, width, 3, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3), nn.BatchNorm2d(width)
        self.shortcut = projection(inside, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


class Bottleneck(nn.Module):
    """The same with three convolutions, 1x1, 3x3 and 1x1 to four times the channels."""

    growth = 4

    def __init__(self, inside: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(inside, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = conv(width, 4 * width, 1), nn.BatchNorm2d(4 * width)
        self.shortcut = projection(inside, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return F.relu(self.bn3(self.conv3(out)) + self.shortcut(x))


def projection(inside: int, outside: int, stride: int) -> nn.Sequential:
    if stride == 1 and inside == outside:
        return nn.Sequential()
    return nn.Sequential(conv(inside, outside, 1, stride), nn.BatchNorm2d(outside))


class ResNet(nn.Module):
    """Residual network (He et al., CVPR 2016) of four groups whose first layer is 3x3 with stride 1."""

    def __init__(self, classes: int, block: Any, counts: tuple[int, ...]) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(3, 64, 3), nn.BatchNorm2d(64)
        inside = 64
        for i, (width, n) in enumerate(zip((64, 128, 256, 512), counts, strict=True)):
            outside = width * block.growth
            layers = [block(inside, width, 1 + (i > 0)), *(block(outside, width, 1) for _ in range(n - 1))]
            setattr(self, f"layer{i + 1}", nn.Sequential(*layers))
            inside = outside
        self.linear = nn.Linear(inside, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for i in range(4):
            x = getattr(self, f"layer{i + 1}")(x)
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits
