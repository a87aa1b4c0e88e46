"""A small U-Net, with or without a time, for defenses that map images to images."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def fresh(make: Callable[[], M], seed: int) -> M:
    """Call `make` to build a module whose weights depend on the seed only."""
    with torch.random.fork_rng(devices=[]):  # initialisers draw from the global generator
        torch.manual_seed(seed)
        return make()


class Block(nn.Module):
    """A residual block of two 3x3 convolutions; the time, if there is one, is added between them."""

    def __init__(self, inputs: int, outputs: int, times: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(min(4, inputs), inputs), nn.Conv2d(inputs, outputs, 3, 1, 1)
        self.norm2, self.conv2 = nn.GroupNorm(min(4, outputs), outputs), nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.time = nn.Linear(times, outputs) if times else None
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, h: Tensor, time: Tensor | None) -> Tensor:
        inner = self.conv1(F.silu(self.norm1(h)))
        if self.time is not None and time is not None:
            inner = inner + self.time(time)[:, :, None, None]
        out: Tensor = self.skip(h) + self.conv2(F.silu(self.norm2(inner)))
        return out


class UNet(nn.Module):
    """Maps images [n, inputs, H, W], and times [n] if `timed`, to images [n, outputs, H, W].

    Three levels with width, 2 width and 4 width channels; `width` is a multiple of 4. Sides that are no multiple of 4
    are padded.
    """

    def __init__(self, inputs: int, outputs: int, width: int, timed: bool = False) -> None:
        super().__init__()
        w, times = width, 4 * width if timed else 0
        self.first = nn.Conv2d(inputs, w, 3, 1, 1)
        self.down = nn.ModuleList([Block(w, w, times), Block(w, 2 * w, times), Block(2 * w, 4 * w, times)])
        self.middle = Block(4 * w, 4 * w, times)
        self.up = nn.ModuleList([Block(6 * w, 2 * w, times), Block(3 * w, w, times)])
        self.last = nn.Sequential(nn.GroupNorm(4, w), nn.SiLU(), nn.Conv2d(w, outputs, 3, 1, 1))
        self.embed = nn.Sequential(nn.Linear(w, times), nn.SiLU()) if timed else None
        self.width = width

    def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        height, width = x.shape[-2:]
        h = self.first(F.pad(x, (0, -width % 4, 0, -height % 4), mode="replicate"))
        time = None if self.embed is None or t is None else self.embed(self._waves(t.to(h.dtype)))
        passed = []
        for i, block in enumerate(self.down):
            h = block(F.avg_pool2d(h, 2) if i else h, time)
            passed.append(h)
        h = self.middle(h, time)
        for block, skip in zip(self.up, reversed(passed[:-1]), strict=True):
            h = block(torch.cat([F.interpolate(h, scale_factor=2.0, mode="nearest"), skip], dim=1), time)
        out: Tensor = self.last(h)
        return out[..., :height, :width]

    def _waves(self, t: Tensor) -> Tensor:
        """Sines and cosines of t at geometric frequencies, [n, width]."""
        half = self.width // 2
        angles = t[:, None] * 1e-4 ** (torch.arange(half, dtype=t.dtype, device=t.device) / half)
        return torch.cat([angles.sin(), angles.cos()], dim=1)
