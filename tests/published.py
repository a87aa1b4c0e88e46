"""Architectures of published networks whose weights are below `weights/` in SIEGEBENCH_DATA, for tests.

NETWORKS maps a file below `weights/` to its network, its normalisation, and an accuracy that was measured with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from siegebench.zoo.fastest_det import FastestDetNet
from siegebench.zoo.verified_net import FORMS, layers
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


def _verified(name: str, correct: float, data: str = "cifar10_jpeg") -> Published:
    form, shape = FORMS[name], (1, 28, 28) if data == "mnist1000" else (3, 32, 32)
    make = partial(layers, name, 10, *shape)
    return Published(make, data, correct, count=500, mean=form.mean, std=form.std)


signs = partial(small_vgg, 43)
NETWORKS = {
    "I-BAU/badnets_8_02_ckpt.pth": Published(small_vgg, correct=78.10),
    "I-BAU/l0_inv_0_02_ckpt.pth": Published(small_vgg, correct=76.89),
    "I-BAU/l2_inv_0_02_ckpt.pth": Published(small_vgg, correct=77.34),
    "I-BAU/gtsrbbadnets_8_02_ckpt.pth": Published(signs, "gtsrb", 96.44, cut=5),
    "I-BAU/gtsrbtrojan_wm_2_02_ckpt.pth": Published(signs, "gtsrb", 96.63, cut=5),
    "alpha-beta-CROWN/resnet2b.pth": _verified("resnet2b", 68.4),
    "alpha-beta-CROWN/resnet4b.pth": _verified("resnet4b", 75.4),
    "alpha-beta-CROWN/cifar_cnn_a_adv4.model": _verified("cnn_a", 57.6),
    "alpha-beta-CROWN/oval_cifar_deep.pth": _verified("oval_deep", 55.0),
    "alpha-beta-CROWN/cifar_marabou_medium.pth": _verified("marabou_medium", 70.8),
    "alpha-beta-CROWN/MadryCNN_no_maxpool_tiny.pt": _verified("madry_tiny", 97.2, data="mnist1000"),
    "sinabs/mnist_params.pt": Published(spiking_as_relu, "mnist1000", 98.0, count=500),
    "FastestDet/weight_AP05_0.253207_280-epoch.pth": Published(FastestDetNet, ""),
}
