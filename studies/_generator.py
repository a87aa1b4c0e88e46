"""A generator of images that look like one and have the features of another."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Generator(nn.Module):
    """x' = clip(x + eps tanh(g(x, x_t))), with a convolutional g at half and quarter size, [n, 1, H, W]."""

    def __init__(self, eps: float, width: int = 32) -> None:
        super().__init__()
        self.eps = eps
        self.down, self.deep = _layer(2, width, 2), _layer(width, 2 * width, 2)
        self.inner, self.back = _layer(2 * width, 2 * width), _layer(3 * width, width)
        self.out = nn.Conv2d(width, 4, 3, 1, 1)

    def forward(self, x: Tensor, goal: Tensor) -> Tensor:
        down = self.down(torch.cat([x, goal], dim=1))
        inner = F.interpolate(self.inner(self.deep(down)), scale_factor=2)
        change = F.pixel_shuffle(self.out(self.back(torch.cat([inner, down], dim=1))), 2)
        return (x + self.eps * change.tanh()).clamp(0, 1)


def _layer(inside: int, outside: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inside, outside, 3, stride, 1), nn.BatchNorm2d(outside), nn.ReLU())


def fitted(
    generator: Generator,
    encoder: Callable[[Tensor], Tensor],
    scenes: Callable[[int], Tensor],
    steps: int,
    batch: int,
    lr: float,
) -> Generator:
    """Minimise ||f(x') - f(x_t)||^2 over pairs (x, x_t) of scenes, each used once; lr falls to zero.

    Args:
        scenes: new scenes by the number of the time they are asked for; each time gives pairs for some steps.
    """
    optimiser = torch.optim.Adam(generator.train().parameters(), lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
    held, asked = torch.empty(0), 0
    for _ in range(steps):
        if len(held) < 2 * batch:
            held, asked = scenes(asked), asked + 1
        x, goal, held = held[:batch], held[batch : 2 * batch], held[2 * batch :]
        loss = (encoder(generator(x, goal)) - encoder(goal)).square().sum(dim=1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return generator.eval()
