"""Camouflages that keep their contract, and one or more for each clause that break it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from siegebench.threat import Access
from siegebench.types import Camouflage
from siegebench.types.camouflages import Texture


@dataclass(frozen=True, kw_only=True)
class Bluest(Camouflage):
    """An honest camouflage, to be broken below: the corner of the RGB cube with the lowest score."""

    def paint(self, stage, draws):
        corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)
        scores = [float(stage.sighted(Texture(c.view(3, 1, 1), 1.0).on(stage.maps)).mean()) for c in corners]
        return Texture(corners[min(range(8), key=scores.__getitem__)].view(3, 1, 1), 1.0)


class TooBright(Bluest):
    def paint(self, stage, draws):
        return Texture(torch.full((3, 2, 2), 1.5), 1.0)


class WithoutPeriod(Bluest):
    def paint(self, stage, draws):
        return Texture(torch.zeros(3, 2, 2), 0.0)


class ByChance(Bluest):
    def paint(self, stage, draws):
        return Texture(torch.rand(3, 2, 2), 1.0)


class WritesOnTheVictim(Bluest):
    def paint(self, stage, draws):
        found = super().paint(stage, draws)
        stage.oracle.model.train()
        return found


class WritesOnTheMaps(Bluest):
    def paint(self, stage, draws):
        found = super().paint(stage, draws)
        stage.maps.m.mul_(0.5)
        return found


class NeverAsks(Bluest):
    def paint(self, stage, draws):
        return Texture(torch.tensor([0.0, 0.0, 1.0]).view(3, 1, 1), 1.0)


class Red(Bluest):
    def paint(self, stage, draws):
        stage.sighted(Texture(torch.zeros(3, 1, 1), 1.0).on(stage.maps))
        return Texture(torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1), 1.0)


class AsksWithoutAccess(Bluest):
    needs: ClassVar[Access] = "none"


HONEST = [("camouflage", Bluest())]


BROKEN = [
    ("camouflage", TooBright(), "returns a texture of the right shape and range", "not [0, 1]"),
    ("camouflage", WithoutPeriod(), "returns a texture of the right shape and range", "period 0"),
    ("camouflage", AsksWithoutAccess(), "returns a texture of the right shape and range", "grants no access"),
    ("camouflage", ByChance(), "gives the same texture for the same draws", "torch"),
    ("camouflage", WritesOnTheVictim(), "leaves the victim and the scenes as they were", "the victim was changed"),
    ("camouflage", WritesOnTheMaps(), "leaves the victim and the scenes as they were", "the maps were changed: m"),
    ("camouflage", NeverAsks(), "uses the access that it declares", "never asked the victim"),
    ("camouflage", Red(), "hides a vehicle better than grey paint", "with grey paint"),
]
