"""Architectures of published networks whose weights are below `weights/` in SIEGEBENCH_DATA, for tests.

NETWORKS maps a file below `weights/` to its network, its normalisation, and an accuracy that was measured with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch.nn.functional as F
from siegebench.zoo.fastest_det import FastestDetNet
from torch import Tensor, nn

Channels = tuple[float, ...]


def small_vgg(classes: int = 10) -> nn.Module:
    """Three blocks of two convolutions with batch norm and ELU; the networks of the I-BAU repository."""
    return _SmallVGG(classes)


class _SmallVGG(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inside = 3
        for width, dropped in ((32, 0.3), (64, 0.4), (128, 0.4)):
            for channels in (inside, width):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ELU()]
            layers += [nn.MaxPool2d(2), nn.Dropout(dropped)]
            inside = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(2048, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


class _Block(nn.Module):
    """Residual block without batch norm."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1)
        self.shortcut = nn.Sequential(*([nn.Conv2d(inside, outside, 1, stride)] if stride > 1 else []))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x))


class _ResNetB(nn.Module):
    def __init__(self, planes: int, layers: int, flat: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, planes, 3, 2, 1)
        width = 2 * planes
        self.layer1 = nn.Sequential(_Block(planes, width, 2), _Block(width, width, 1))
        if layers == 2:
            self.layer2 = nn.Sequential(_Block(width, width, 2), _Block(width, width, 1))
        self.linear1, self.linear2 = nn.Linear(flat, 100), nn.Linear(100, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer1(F.relu(self.conv1(x)))
        if hasattr(self, "layer2"):
            x = self.layer2(x)
        logits: Tensor = self.linear2(F.relu(self.linear1(x.flatten(1))))
        return logits


def resnet2b() -> nn.Module:
    """The small residual networks of VNN-COMP 2021: two blocks, 112,006 parameters."""
    return _ResNetB(8, 1, 1024)


def resnet4b() -> nn.Module:
    """Four blocks, 123,734 parameters."""
    return _ResNetB(16, 2, 512)


def _layers(convolutions: list[nn.Conv2d], *widths: int) -> nn.Module:
    """Convolutions, then linear layers, with ReLU between all of them."""
    layers: list[nn.Module] = []
    for convolution in convolutions:
        layers += [convolution, nn.ReLU()]
    layers.append(nn.Flatten())
    for inside, outside in pairwise(widths):
        layers += [nn.Linear(inside, outside), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def cnn_a() -> nn.Module:
    """CNN-A of the semidefinite verification paper."""
    return _layers([nn.Conv2d(3, 16, 4, 2, 1), nn.Conv2d(16, 32, 4, 2, 1)], 2048, 100, 10)


def oval_deep() -> nn.Module:
    """The 'deep' network of the OVAL benchmark, provably trained."""
    convolutions = [nn.Conv2d(3, 8, 4, 2, 1), nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1)]
    return _layers([*convolutions, nn.Conv2d(8, 8, 4, 2, 1)], 512, 100, 10)


def marabou_medium() -> nn.Module:
    """The 'medium' network of the Marabou benchmark, plainly trained."""
    return _layers([nn.Conv2d(3, 16, 4, 2), nn.Conv2d(16, 32, 4, 2)], 1152, 128, 64, 10)


def madry_cnn() -> nn.Module:
    """A small MNIST network, adversarially trained."""
    return _layers([nn.Conv2d(1, 4, 5, 2, 2), nn.Conv2d(4, 8, 5, 2, 2)], 392, 128, 10)


def spiking_as_relu() -> nn.Module:
    """The bias-free MNIST network of sinabs, with ReLU in place of spiking neurons."""
    layers: list[nn.Module] = []
    for inside, outside, kernel in ((1, 20, 5), (20, 32, 5), (32, 128, 3)):
        layers += [nn.Conv2d(inside, outside, kernel, bias=False), nn.ReLU(), nn.AvgPool2d(2)]
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(128, 500, bias=False), nn.ReLU(), nn.Linear(500, 10, bias=False)
    )


# --------------------------------------------------------------------------------------------------- the files


@dataclass(frozen=True)
class Published:
    """A network below `weights/`, and how its README says it is used.

    Attributes:
        data: `cifar10_jpeg`, `gtsrb`, `mnist1000`; empty for a network that is no classifier.
        correct: accuracy in percent on the first `count` test images (all if None), as its README states it.
        cut: border pixels to cut off before the image is resized to 32.
    """

    make: Callable[[], nn.Module]
    data: str = "cifar10_jpeg"
    correct: float = 0.0
    count: int | None = None
    mean: Channels = (0.0,)
    std: Channels = (1.0,)
    cut: int = 0


OVAL_MEAN, OVAL_STD = (0.485, 0.456, 0.406), (0.225, 0.225, 0.225)
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
CNN_A_MEAN = (125.3 / 255, 123.0 / 255, 113.9 / 255)
CNN_A_STD = (63.0 / 255, 62.1 / 255, 66.7 / 255)
signs = partial(small_vgg, 43)
NETWORKS = {
    "I-BAU/badnets_8_02_ckpt.pth": Published(small_vgg, correct=78.10),
    "I-BAU/l0_inv_0_02_ckpt.pth": Published(small_vgg, correct=76.89),
    "I-BAU/l2_inv_0_02_ckpt.pth": Published(small_vgg, correct=77.34),
    "I-BAU/gtsrbbadnets_8_02_ckpt.pth": Published(signs, "gtsrb", 96.44, cut=5),
    "I-BAU/gtsrbtrojan_wm_2_02_ckpt.pth": Published(signs, "gtsrb", 96.63, cut=5),
    "alpha-beta-CROWN/resnet2b.pth": Published(resnet2b, correct=68.4, count=500, mean=CIFAR_MEAN, std=CIFAR_STD),
    "alpha-beta-CROWN/resnet4b.pth": Published(resnet4b, correct=75.4, count=500, mean=CIFAR_MEAN, std=CIFAR_STD),
    "alpha-beta-CROWN/cifar_cnn_a_adv4.model": Published(
        cnn_a, correct=57.6, count=500, mean=CNN_A_MEAN, std=CNN_A_STD
    ),
    "alpha-beta-CROWN/oval_cifar_deep.pth": Published(oval_deep, correct=55.0, count=500, mean=OVAL_MEAN, std=OVAL_STD),
    "alpha-beta-CROWN/cifar_marabou_medium.pth": Published(marabou_medium, correct=70.8, count=500),
    "alpha-beta-CROWN/MadryCNN_no_maxpool_tiny.pt": Published(madry_cnn, "mnist1000", 97.2, count=500),
    "sinabs/mnist_params.pt": Published(spiking_as_relu, "mnist1000", 98.0, count=500),
    "FastestDet/weight_AP05_0.253207_280-epoch.pth": Published(FastestDetNet, ""),
}
