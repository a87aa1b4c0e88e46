"""Textures on rendered scenes: image = sRGB(A + M texture), with exact gradients.

A scene is rendered once to maps (siegebench.render.scenes.Maps). Then a texture costs a bilinear look-up at each sample
of paint, a product and a sum. The colours of a texture are sRGB in [0, 1], as in an image file. They are converted to
linear light, where they are the diffuse albedo; texels are mixed and samples of a pixel are averaged in linear light,
and the pixel is converted to sRGB at the end.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench.errors import ConfigError
from siegebench.render.maps import Maps

Projection = Literal["triplanar", "screen"]


def linear(srgb: Tensor) -> Tensor:
    """sRGB in [0, 1] to linear light (IEC 61966-2-1)."""
    return torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb.clamp(min=0.04) + 0.055) / 1.055) ** 2.4)


def encoded(light: Tensor) -> Tensor:
    """Linear light to sRGB in [0, 1]; what is brighter than white is clipped."""
    # clamp has no gradient at the limits themselves
    light = torch.where((light >= 0) & (light <= 1), light, light.detach().clamp(0, 1))
    return torch.where(light <= 0.0031308, light * 12.92, 1.055 * light.clamp(min=0.003) ** (1 / 2.4) - 0.055)


def texels(texture: Tensor, at: Tensor) -> Tensor:
    """Bilinear look-up in textures that repeat.

    Args:
        texture: [n, 3, h, w], or [1, 3, h, w] for one texture on all images.
        at: [n, P, 2], (x, y) in periods: (0, 0) and (1, 1) are the same corner. Row 0 is at the top, y goes down.

    Returns:
        [n, P, 3].
    """
    count, _, height, width = texture.shape
    padded = F.pad(texture, (1, 1, 1, 1), mode="circular")
    at = (at - at.floor()) * at.new_tensor([width, height]) + 1
    grid = at * (2 / at.new_tensor([width + 2, height + 2])) - 1
    grid = grid[:, :, None] if count > 1 else grid.view(1, -1, 1, 2)
    found = F.grid_sample(padded, grid, align_corners=False)
    return found.squeeze(3).transpose(1, 2).reshape(len(at), -1, texture.shape[1])


def radiance(
    maps: Maps, albedo: Tensor, period: float, shift: Tensor | None = None, scale: Tensor | None = None,
    projection: Projection = "triplanar",
) -> Tensor:  # fmt: skip
    """Images [n, 3, H, W] in linear light, affine in the albedo. The arguments are those of `compose`.

    Raises:
        ConfigError: when shapes do not fit, or the period is not positive.
    """
    n, found = len(maps), tuple(albedo.shape)
    albedo = albedo[None] if albedo.ndim == 3 else albedo
    if albedo.ndim != 4 or albedo.shape[1] != 3 or len(albedo) not in (1, n):
        raise ConfigError(f"texture: found {found}; expected [3, h, w] or [{n}, 3, h, w]")
    if not period > 0:
        raise ConfigError(f"period: found {period}; expected metres, more than 0")
    at = (maps.uv if projection == "triplanar" else maps.screen).to(albedo.dtype) / period
    if scale is not None:
        at = at / scale.view(-1, 1, 1).to(at)
    if shift is not None:
        at = at + shift.view(-1, 1, 2).to(at)
    colour = maps.m.to(albedo.dtype) * texels(albedo, at)
    height, width = maps.size
    cell = maps.cell + torch.arange(n, device=maps.cell.device)[:, None] * (height * width)
    painted = torch.zeros(n * height * width, 3, dtype=colour.dtype, device=colour.device)
    painted = painted.index_add(0, cell.flatten(), colour.flatten(0, 1))
    return maps.a.to(albedo.dtype) + painted.view(n, height, width, 3).permute(0, 3, 1, 2) / maps.ss**2


def compose(
    maps: Maps, texture: Tensor, period: float, shift: Tensor | None = None, scale: Tensor | None = None,
    projection: Projection = "triplanar",
) -> Tensor:  # fmt: skip
    """Images of scenes with a texture on the paint, sRGB [n, 3, H, W] in [0, 1], differentiable.

    Args:
        maps: of n scenes.
        texture: sRGB in [0, 1], [3, h, w], or [n, 3, h, w] for one of its own on each image. It repeats.
        period: metres after which the texture repeats.
        shift: [n, 2] or [1, 2], (x, y) in periods.
        scale: [n] or [1], factor of the period.
        projection: `triplanar` puts the texture on the surface along its dominant axis (ACTIVE). `screen` puts it on a
            plane through the middle of the vehicle that faces the camera (after DTA, whose warp follows the camera).

    Raises:
        ConfigError: when shapes do not fit, or the period is not positive.
    """
    return encoded(radiance(maps, linear(texture), period, shift, scale, projection))
