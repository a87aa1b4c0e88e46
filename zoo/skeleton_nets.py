"""Networks that recognise the action of a moving skeleton: a temporal CNN, a graph CNN, and DD-Net."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siegebench.classifier import ModelCard, Network
from siegebench.data import Size
from siegebench.errors import ModelError
from siegebench.train import Recipe

from ._checkpoint import Checkpointed

RECIPE = Recipe(epochs=12, batch=64, lr=2e-3, weight_decay=1e-2, augment="none")
SMALLEST = 8  # frames


def _convolution(inside: int, outside: int, kernel: int, slope: float = 0.0) -> nn.Sequential:
    """Convolution over time, batch norm, leaky ReLU."""
    convolution = nn.Conv1d(inside, outside, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm1d(outside), nn.LeakyReLU(slope))


class Temporal(nn.Module):
    """Three convolutions over time; the coordinates of all joints are its channels."""

    def __init__(self, classes: int, channels: int, joints: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            _convolution(channels * joints, width, 5), _convolution(width, width, 5), nn.MaxPool1d(2),
            _convolution(width, 2 * width, 5), nn.Dropout(0.3),
        )  # fmt: skip
        self.linear = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.layers(x.transpose(2, 3).flatten(1, 2)).mean(dim=2))
        return logits


class GraphBlock(nn.Module):
    """Every joint takes a learnt mixture of all joints, then a convolution over time; a shortcut where shapes agree."""

    def __init__(self, inside: int, outside: int, joints: int) -> None:
        super().__init__()
        self.mixture = nn.Parameter(torch.eye(joints) + 0.05 * torch.randn(joints, joints))
        self.colour = nn.Conv2d(inside, outside, 1, bias=False)
        self.time = nn.Conv2d(outside, outside, (5, 1), padding=(2, 0), bias=False)
        self.norm1, self.norm2, self.same = nn.BatchNorm2d(outside), nn.BatchNorm2d(outside), inside == outside

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm1(self.colour(x @ self.mixture)))
        out = self.norm2(self.time(out))
        return F.relu(out + x if self.same else out)


class Graph(nn.Module):
    """Three graph blocks, whose graphs are learnt; half the frames after the second."""

    def __init__(self, classes: int, channels: int, joints: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            GraphBlock(channels, width, joints), GraphBlock(width, width, joints), nn.AvgPool2d((2, 1)),
            GraphBlock(width, 2 * width, joints),
        )  # fmt: skip
        self.linear = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.layers(x).mean(dim=(2, 3)))
        return logits


class DDNet(nn.Module):
    """Distances of all pairs of joints, and differences of neighbouring and of next but one frames."""

    def __init__(self, classes: int, channels: int, joints: int, width: int) -> None:
        super().__init__()
        pairs = torch.combinations(torch.arange(joints), 2)
        self.register_buffer("one", pairs[:, 0], persistent=False)
        self.register_buffer("other", pairs[:, 1], persistent=False)
        self.one: Tensor
        self.other: Tensor
        layer = partial(_convolution, slope=0.2)

        def embedding(inside: int, *last: nn.Module) -> nn.Sequential:
            return nn.Sequential(
                layer(inside, 2 * width, 1), nn.Dropout1d(0.1), layer(2 * width, width, 3), nn.Dropout1d(0.1),
                layer(width, width, 1), *last, nn.Dropout1d(0.1),
            )  # fmt: skip

        self.distances = embedding(len(pairs), nn.MaxPool1d(2))
        self.slow = embedding(channels * joints, nn.MaxPool1d(2))
        self.fast = embedding(channels * joints)
        inside, layers = 3 * width, list[nn.Module]()
        for outside, pooled in ((2 * width, True), (4 * width, True), (8 * width, False)):
            layers += [layer(inside, outside, 3), layer(outside, outside, 3)]
            layers += [nn.MaxPool1d(2)] if pooled else []
            layers, inside = [*layers, nn.Dropout1d(0.1)], outside
        self.layers = nn.Sequential(*layers)
        dense: list[nn.Module] = []
        for outside in (128, 128):
            dense += [nn.Linear(inside, outside, bias=False), nn.BatchNorm1d(outside), nn.LeakyReLU(0.2)]
            dense, inside = [*dense, nn.Dropout(0.5)], outside
        self.dense = nn.Sequential(*dense, nn.Linear(inside, classes))

    def forward(self, x: Tensor) -> Tensor:
        far = (x[..., self.one] - x[..., self.other]).square().sum(dim=1)  # [n, T, pairs]
        far = (far + 1e-6).sqrt().transpose(1, 2)  # the root has no slope at 0
        flat = x.transpose(2, 3).flatten(1, 2)  # [n, channels * joints, T]
        slow = F.interpolate(flat[..., 1:] - flat[..., :-1], flat.shape[2], mode="linear", align_corners=False)
        half = flat[..., ::2]
        fast = F.interpolate(half[..., 1:] - half[..., :-1], flat.shape[2] // 2, mode="linear", align_corners=False)
        out = self.layers(torch.cat([self.distances(far), self.slow(slow), self.fast(fast)], dim=1))
        logits: Tensor = self.dense(out.amax(dim=2))
        return logits


BODIES: dict[str, tuple[type[nn.Module], int]] = {
    "temporal": (Temporal, 64),
    "graph": (Graph, 32),
    "dd_net": (DDNet, 64),
}


@dataclass(frozen=True, kw_only=True)
class SkeletonNet(Checkpointed):
    """A network for sequences of joints [n, 3 or 2, frames, joints] in [0, 1], at least 8 frames; trained by the suite.

    `temporal` and `graph` are small networks of this project. `dd_net`: Yang, Sakti, Wu, Nakamura, "Make Skeleton-based
    Action Recognition Model Smaller, Faster and Better", ACM Multimedia Asia 2019, arXiv 1907.09658.

    Random: the initial weights and dropout; the harness seeds them.

    Differs from the paper (`dd_net`): distances and differences are computed inside the network, so that attacks see
    them. Frames are interpolated linearly, without the median filter. Optimiser and epochs are those of the recipe.

    Attributes:
        body: the architecture.
        width: channels of the first layers; by default 64, of `graph` 32.
        recipe: for training; sequences are not augmented.
    """

    body: Literal["temporal", "graph", "dd_net"] = "temporal"
    width: int | None = None
    recipe: Recipe = RECIPE

    def build(self, *, num_classes: int, size: Size, channels: int = 3) -> Network:
        frames, joints = (size, size) if isinstance(size, int) else size
        if frames < SMALLEST:
            raise ModelError(f"skeleton networks take at least {SMALLEST} frames, these sequences have {frames}")
        body, usual = BODIES[self.body]
        make = partial(body, num_classes, channels, joints, self.width or usual)
        net = make()
        mean, std, source, digest = self.loaded(net, (0.5,) * channels, (0.25,) * channels)
        card = ModelCard(
            name=f"{self.body} skeleton network", architecture=f"{self.body}, width {self.width or usual}",
            source=source, weights=digest, preprocessing={"mean": mean, "std": std},
        )  # fmt: skip
        return Network(net, num_classes=num_classes, mean=mean, std=std, card=card, rebuild=make).eval()
