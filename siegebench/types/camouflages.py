"""Camouflage: one texture for the paint of all vehicles, and what it is made on."""

from __future__ import annotations

import copy
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from siegebench.draws import Draws
from siegebench.errors import ContractError
from siegebench.oracle import Oracle
from siegebench.render.compose import Projection, compose
from siegebench.render.maps import Maps
from siegebench.sighting import Sighting, sighting
from siegebench.threat import TOLERANCE, Access
from siegebench.types.base import Entry

GREY = 128 / 255  # of an unpainted vehicle, as in DTA and ACTIVE


@dataclass(frozen=True, eq=False)
class Texture:
    """A texture that repeats over the paint.

    Attributes:
        pixels: [3, h, w], sRGB in [0, 1].
        period: metres after which it repeats.
        projection: `triplanar`, on the surface, or `screen`, on a plane that faces the camera.
        covered: the share of the texture that carries a pattern; the rest is grey.
    """

    pixels: Tensor
    period: float
    projection: Projection = "triplanar"
    covered: float = 1.0

    def on(self, maps: Maps) -> Tensor:
        """Images [n, 3, H, W] of scenes with the texture on their paint."""
        return compose(maps, self.pixels.to(maps.a), self.period, projection=self.projection)


class Stage:
    """What a camouflage is made on: scenes of the training split, the victim's scores, colours of the backgrounds.

    `stage[index]` has some of the scenes. All views share one ledger of passes.

    Attributes:
        maps: of the scenes with vehicles, two samples along each side of a pixel.
        oracle: the victim, with the access that the camouflage declares; its samples are the scenes.
        vehicles: labels of vehicles.
        colours: dominant colours of the backgrounds, sRGB [K, 3], the most frequent first.
    """

    def __init__(self, maps: Maps, oracle: Oracle, vehicles: tuple[int, ...], colours: Tensor) -> None:
        self.maps, self.oracle, self.vehicles, self.colours = maps, oracle, vehicles, colours

    def __len__(self) -> int:
        return len(self.maps)

    def __getitem__(self, index: Tensor) -> Stage:
        """The stage with some of the scenes."""
        view = copy.copy(self)
        view.maps, view.oracle = self.maps[index], self.oracle[index]
        return view

    def sighting(self, x: Tensor, boxes: Tensor | None = None, *, strict: bool = True) -> Sighting:
        """The victim's scores for "vehicle" in images of the scenes, with their gradient; each image is one pass.

        Args:
            x: [n, 3, H, W], one image of each scene.
            boxes: [n, 4], where the vehicles are if the images were moved or scaled; by default as in the maps.
            strict: count only candidates of an object detector that overlap the vehicle. A classifier has one
                candidate and ignores both.
        """
        where = self.maps.box if boxes is None else boxes
        return sighting(self.oracle.model, lambda: self.oracle(x), self.vehicles, where, strict=strict)

    def sighted(self, x: Tensor, boxes: Tensor | None = None, *, strict: bool = True) -> Tensor:
        """The scores of `sighting`, in [0, 1], [n, K]."""
        return self.sighting(x, boxes, strict=strict).score


class Camouflage(Entry):
    """Makes one texture for the paint of all vehicles.

    Class attributes:
        needs: the least access to the victim that it works with; `none` for a texture that is made without it.
    """

    needs: ClassVar[Access] = "gradient"

    def cost(self) -> float:
        """A rough number of passes; only the order matters."""
        return float(getattr(self, "steps", 1) * getattr(self, "restarts", 1))

    @abstractmethod
    def paint(self, stage: Stage, draws: Draws) -> Texture:
        """The texture. All random numbers come from `draws`, which has one stream."""

    @final
    def __call__(self, stage: Stage, draws: Draws) -> Texture:
        """Paint, then check the contract: shape, finite, in [0, 1], a positive period.

        Raises:
            ContractError: naming the camouflage and what is wrong.
        """
        found = self.paint(stage, draws)
        pixels = found.pixels
        if pixels.ndim != 3 or pixels.shape[0] != 3 or 0 in pixels.shape:
            raise ContractError(f"{self!r} returned a texture {tuple(pixels.shape)}; expected [3, h, w]")
        if not bool(torch.isfinite(pixels).all()):
            raise ContractError(f"{self!r} returned a texture with NaN or infinite pixels")
        if bool(((pixels < -TOLERANCE) | (pixels > 1 + TOLERANCE)).any()):
            raise ContractError(f"{self!r} returned pixels in [{pixels.amin():.4f}, {pixels.amax():.4f}], not [0, 1]")
        if not found.period > 0 or not 0 <= found.covered <= 1:
            raise ContractError(f"{self!r} returned period {found.period:g} and covered {found.covered:g}")
        return Texture(pixels.detach().clamp(0, 1), float(found.period), found.projection, float(found.covered))


def described(texture: Texture) -> dict[str, Any]:
    """A texture as tensors, as an artifact stores it."""
    return {
        "pixels": texture.pixels.cpu().float(), "period": torch.tensor(texture.period, dtype=torch.float64),
        "screen": torch.tensor(texture.projection == "screen"),
        "covered": torch.tensor(texture.covered, dtype=torch.float64),
    }  # fmt: skip


def restored(tensors: dict[str, Tensor]) -> Texture:
    """The texture that `described` described."""
    projection: Projection = "screen" if bool(tensors["screen"]) else "triplanar"
    return Texture(tensors["pixels"], float(tensors["period"]), projection, float(tensors["covered"]))
