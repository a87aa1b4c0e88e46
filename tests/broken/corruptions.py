"""Corruptions that keep their contract, and one or more for each clause that break it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from siegebench.types import Corruption


@dataclass(frozen=True, kw_only=True)
class Darkens(Corruption):
    """An honest corruption, to be broken below."""

    def run(self, x, severity, draws):
        return x * (1 - 0.1 * severity)


class Overexposes(Darkens):
    def run(self, x, severity, draws):
        return x + severity


class DoesNothing(Darkens):
    def run(self, x, severity, draws):
        return x.clone()


class DarkensByChance(Darkens):
    def run(self, x, severity, draws):
        return x * torch.rand(len(x), 1, 1, 1, dtype=x.dtype)


class DarkensByTheBatch(Darkens):
    def run(self, x, severity, draws):
        return x * 0.5 * x.mean()


class AlwaysFloat32(Darkens):
    def run(self, x, severity, draws):
        return super().run(x, severity, draws).float()


HONEST = [("corruption", Darkens())]


BROKEN = [
    ("corruption", Overexposes(), "returns images of the right shape and range", "pixels in"),
    ("corruption", DoesNothing(), "changes the images", "6 of 6 images are unchanged"),
    ("corruption", DarkensByChance(), "gives the same images for the same draws", "torch"),
    ("corruption", DarkensByTheBatch(), "treats an image alone as in a batch", "in another batch"),
    ("corruption", AlwaysFloat32(), "works in float64", "float32"),
]
