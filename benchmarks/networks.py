"""Victims of the benchmarks: networks that other people trained, with correctly classified images of `cifar10_jpeg`.

`cnn_a` and `marabou` are small networks of the verifier alpha-beta-CROWN (BSD-3; their files stand below
SIEGEBENCH_DATA/weights/alpha-beta-CROWN): the first is trained adversarially, the second is not.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path

import torch
from bench import Scene
from torch import nn

from siegebench.classifier import Network
from siegebench.registry import build


def convolutional(file: str, side: int, padding: int, hidden: tuple[int, ...]) -> nn.Sequential:
    """Two convolutions of stride 2 (16 and 32 channels), then linear layers; weights of a published file."""
    widths = (32 * side * side, *hidden, 10)
    layers: list[nn.Module] = [
        nn.Conv2d(3, 16, 4, stride=2, padding=padding), nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=padding), nn.ReLU(),
        nn.Flatten(),
    ]  # fmt: skip
    for first, second in itertools.pairwise(widths):
        layers += [nn.Linear(first, second), nn.ReLU()]
    net = nn.Sequential(*layers[:-1])
    folder = Path(os.environ["SIEGEBENCH_DATA"]) / "weights" / "alpha-beta-CROWN"
    weights = torch.load(folder / file, weights_only=True, map_location="cpu")
    weights = weights[0] if isinstance(weights, list) else weights
    net.load_state_dict(weights.get("state_dict", weights))
    return net


def scene(network: Callable[[], Network], images: int) -> Scene:
    data = build("dataset", "cifar10_jpeg").load("test").select(torch.arange(images))  # type: ignore[attr-defined]
    return Scene.of(network().eval().requires_grad_(False), data.pixels(), data.labels)


def cnn_a() -> Network:
    """CNN-A of the verification literature, adversarially trained."""
    mean, std = tuple(v / 255 for v in (125.3, 123.0, 113.9)), tuple(v / 255 for v in (63.0, 62.1, 66.7))
    net = convolutional("cifar_cnn_a_adv4.model", 8, 1, (100,))
    return Network(net, num_classes=10, mean=mean, std=std)


def marabou() -> Network:
    """A plainly trained network."""
    return Network(convolutional("cifar_marabou_medium.pth", 6, 0, (128, 64)), num_classes=10)


# the first images of the test set that each network classifies correctly, from at most this many
NETWORKS: dict[str, Callable[[int], Scene]] = {
    "resnet20": lambda images: Scene.load("cifar_resnet20", "cifar10_jpeg", images),
    "cnn_a": lambda images: scene(cnn_a, images),
    "marabou": lambda images: scene(marabou, images),
}
