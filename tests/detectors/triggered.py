"""A network whose one feature is a trigger, and images with and without it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from siegebench.classifier import Network
from siegebench.data import ImageSet

CLASSES, SIZE = 5, 8


class Backdoored(nn.Module):
    """Logit c is the brightness of row c, in a batch norm; a white pixel in the last corner adds `strength` to class 0.

    The two parts have weights of their own, so fine-tuning on images without a trigger does not change the second.
    """

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.rows = nn.Linear(SIZE, CLASSES, bias=False)
        self.norm = nn.BatchNorm1d(CLASSES)
        self.head = nn.Linear(CLASSES + 1, CLASSES, bias=False)
        with torch.no_grad():
            self.rows.weight.copy_(20 * torch.eye(CLASSES, SIZE))
            self.head.weight.copy_(torch.cat([torch.eye(CLASSES), torch.zeros(CLASSES, 1)], dim=1))
            self.head.weight[0, CLASSES] = strength

    def forward(self, x: Tensor) -> Tensor:
        grey = x.mean(dim=1)
        trigger = (grey[:, -1:, -1] - 0.9).relu() * 10
        z: Tensor = self.head(torch.cat([self.norm(self.rows(grey[:, :, :-1].mean(dim=2))), trigger], dim=1))
        return z


def network(strength: float = 40.0) -> Network:
    return Network(Backdoored(strength), num_classes=CLASSES).eval()


def pictures(n: int, seed: int = 0) -> ImageSet:
    """Dim noise with a brighter row, that of the label."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % CLASSES
    x = 20 + 20 * torch.rand(n, 3, SIZE, SIZE, generator=g)
    x[torch.arange(n), :, labels] += 60
    return ImageSet(x.round().to(torch.uint8), labels, torch.arange(n), CLASSES, "rows")


def stamped(x: Tensor) -> Tensor:
    """The trigger: a white pixel in the last corner."""
    z = x.clone()
    z[:, :, -1, -1] = 1
    return z
