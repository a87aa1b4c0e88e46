"""Residual encoders and decoders, which no_box and conditional_generator train."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from siegebench.errors import NotApplicable

Arrangement = Literal["rotation", "jigsaw"]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet

M = TypeVar("M", bound=nn.Module)


class Residual(nn.Module):
    """h + f(h) with two 3x3 convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.f = nn.Sequential(
            nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3, bias=False), nn.BatchNorm2d(channels), nn.ReLU(),
            nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3, bias=False), nn.BatchNorm2d(channels),
        )  # fmt: skip

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = h + self.f(h)
        return out


def stem(inputs: int, outputs: int) -> nn.Sequential:
    """A 7x7 convolution at full resolution."""
    convolution = nn.Conv2d(inputs, outputs, 7, bias=False)
    return nn.Sequential(nn.ReflectionPad2d(3), convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def down(inputs: int, outputs: int) -> nn.Sequential:
    """A convolution that halves height and width."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


def up(inputs: int, outputs: int) -> nn.Sequential:
    """A transposed convolution that doubles height and width."""
    convolution = nn.ConvTranspose2d(inputs, outputs, 3, 2, 1, output_padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class AutoEncoder(nn.Module):
    """Maps images [n, C, H, W] to one image per decoder, [n, decoders, C, h, w] in [0, 1].

    `encode` returns features [n, 4 width, H/4, W/4]. A single decoder returns images of H x W (rounded up to multiples
    of 4). Each of several decoders has two convolutions of its own and returns images of the features' size.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, width: int, decoders: int, channels: int = 3, blocks: int = 3) -> None:
        super().__init__()
        for name, values in (("mean", torch.tensor(MEAN)), ("std", torch.tensor(STD))):
            self.register_buffer(name, (values if channels == 3 else values.mean()[None]).view(-1, 1, 1))
        self.decoders, self.channels, deep = decoders, channels, 4 * width
        self.encoder = nn.Sequential(
            stem(channels, width),
            down(width, 2 * width),
            down(2 * width, deep),
            *[Residual(deep) for _ in range(blocks)],
        )
        if decoders == 1:
            layers = [up(deep, 2 * width), up(2 * width, width), nn.Conv2d(width, channels, 3, 1, 1)]
        else:  # all decoders in one pass: the groups of the second convolution separate them
            hidden = decoders * 2 * width
            layers = [nn.Conv2d(deep, hidden, 3, 1, 1), nn.BatchNorm2d(hidden), nn.ReLU()]
            layers += [nn.Conv2d(hidden, decoders * channels, 3, 1, 1, groups=decoders)]
        self.decoder = nn.Sequential(*layers, nn.Sigmoid())

    def encode(self, x: Tensor) -> Tensor:
        h: Tensor = self.encoder((x - self.mean) / self.std)
        return h

    def forward(self, x: Tensor) -> Tensor:
        images: Tensor = self.decoder(self.encode(x))
        return images.unflatten(1, (self.decoders, self.channels))


def fresh(make: Callable[[], M], seed: int) -> M:
    """Call `make` to build a module whose weights depend on the seed only."""
    with torch.random.fork_rng(devices=[]):  # initialisers draw from the global generator
        torch.manual_seed(seed)
        return make()


def arranged(x: Tensor, how: Arrangement, which: Tensor) -> Tensor:
    """Rotate each image by 0 to 3 quarter turns, or swap its halves in neither, one or both directions.

    Raises:
        NotApplicable: when images to be rotated are not square.
    """
    height, width = x.shape[-2:]
    if how == "rotation":
        if height != width:
            raise NotApplicable(f"images of {height}x{width} cannot be rotated by a quarter turn; they must be square")
        every = torch.stack([x.rot90(k, (2, 3)) for k in range(4)])
    else:
        every = torch.stack([x.roll((i * (height // 2), j * (width // 2)), (2, 3)) for i in (0, 1) for j in (0, 1)])
    return every[which, torch.arange(len(x), device=x.device)]


def slope(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Gradient with respect to x of f, which returns one number per row."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_(True)
        (g,) = torch.autograd.grad(f(leaf).sum(), leaf)
    return g
