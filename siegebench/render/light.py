"""Sun and sky on a mesh and on the ground, in linear light.

The radiance of a surface is affine in its diffuse albedo: albedo D + S. D is the light that falls on it, from the sun
where nothing is in the way, from the parts of the sky that it can see, and from the ground; S is what its surface
mirrors, and the highlight of the sun. There is no light that is reflected twice, except from the ground.

What is in the way is looked up in shadow maps: one fine map for the sun, and a coarse one for each of SKY directions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from siegebench.render.meshes import Floats, Mesh
from siegebench.render.raster import Camera, looking, rasterise

SKY = 24  # directions
SUN_MAP, SKY_MAP = 384, 72  # pixels


@dataclass(frozen=True)
class Light:
    """Sun and sky; strengths are the radiance of a white surface that they light, 1 being white in the picture.

    Attributes:
        azimuth, elevation: of the sun, degrees; the azimuth counts from the front of the vehicle to its left.
        sun: strength and colour, linear RGB.
        sky: likewise, of a horizontal surface under an open sky.
        ground: light that the ground sends back, as the radiance of a white surface that faces it.
    """

    azimuth: float
    elevation: float
    sun: tuple[float, float, float]
    sky: tuple[float, float, float]
    ground: tuple[float, float, float]

    @property
    def direction(self) -> Floats:
        """Unit vector to the sun, [3]."""
        a, e = np.radians(self.azimuth), np.radians(self.elevation)
        return np.array([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)])


@dataclass(frozen=True, eq=False)
class ShadowMap:
    """Depths that an orthographic camera in the direction of a light sees.

    Attributes:
        camera: beside the mesh, looking along the light.
        depth: [H, W], inf where no mesh is.
        bias: metres by which a point may be behind the mesh and still be lit.
    """

    camera: Camera
    depth: NDArray[np.float32]
    bias: float

    def open(self, points: Floats, *, soft: bool) -> Floats:
        """The share of the light that reaches points [..., 3]: 0 or 1, or between if soft (bilinear)."""
        xy, depth = self.camera.project(points)
        if not soft:
            return self._lit(np.floor(xy).astype(np.int64), depth).astype(np.float64)
        corner = np.floor(xy - 0.5).astype(np.int64)
        x, y = np.moveaxis(xy - 0.5 - corner, -1, 0)
        out = np.zeros(depth.shape)
        for dx, dy, weight in ((0, 0, (1 - x) * (1 - y)), (1, 0, x * (1 - y)), (0, 1, (1 - x) * y), (1, 1, x * y)):
            out += weight * self._lit(corner + np.array([dx, dy]), depth)
        return out

    def _lit(self, at: NDArray[np.int64], depth: Floats) -> NDArray[np.bool_]:
        height, width = self.depth.shape
        x, y = at[..., 0], at[..., 1]
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        found = self.depth[np.where(inside, y, 0), np.where(inside, x, 0)]
        return ~inside | (depth <= found + self.bias)


def shadow_map(mesh: Mesh, direction: Floats, size: int) -> ShadowMap:
    """The shadow map of a mesh for parallel light from a direction."""
    focal = (size - 2) / (2 * mesh.radius)
    position = mesh.centre + direction * (mesh.radius + 1)
    camera = Camera(
        looking(position, mesh.centre), position, focal, (size / 2, size / 2), size, size, orthographic=True
    )
    return ShadowMap(camera, rasterise(mesh, camera).depth.astype(np.float32), 1.5 / focal)


@lru_cache(maxsize=64)
def sun_map(mesh: Mesh, azimuth: float, elevation: float) -> ShadowMap:
    """The shadow map of the sun."""
    return shadow_map(mesh, Light(azimuth, elevation, (0, 0, 0), (0, 0, 0), (0, 0, 0)).direction, SUN_MAP)


@lru_cache(maxsize=192)  # half a megabyte each
def sky_maps(mesh: Mesh) -> tuple[ShadowMap, ...]:
    """The shadow maps of the directions of the sky."""
    return tuple(shadow_map(mesh, d, SKY_MAP) for d in sky_directions())


@lru_cache(maxsize=1)
def sky_directions() -> Floats:
    """Directions [SKY, 3] of equal solid angle above the horizon: a golden spiral."""
    i = np.arange(SKY)
    z, turn = (i + 0.5) / SKY, i * np.pi * (3 - np.sqrt(5))
    side = np.sqrt(1 - z**2)
    return np.stack([side * np.cos(turn), side * np.sin(turn), z], axis=1)


def falling(mesh: Mesh, light: Light, points: Floats, normals: Floats) -> tuple[Floats, Floats, Floats]:
    """(D [n, 3], share of the sun [n], share of the sky [n]) at points [n, 3] with normals [n, 3]."""
    sun = sun_map(mesh, light.azimuth, light.elevation)
    lift = points + 0.01 * normals
    lit = sun.open(lift, soft=True)
    facing = np.maximum(normals @ light.direction, 0)
    seen, most = np.zeros(len(points)), np.zeros(len(points))
    for direction, sky in zip(sky_directions(), sky_maps(mesh), strict=True):
        weight = np.maximum(normals @ direction, 0)
        seen += weight * sky.open(lift, soft=False)
        most += weight
    level = sky_directions()[:, 2].sum()
    open_sky = seen / np.maximum(most, 1e-9)
    # the ground is dark below the mesh: what sees little sky also sees little of the lit ground
    below = 0.5 * (1 - normals[:, 2]) * (0.35 + 0.65 * open_sky)
    diffuse = (lit * facing)[:, None] * np.asarray(light.sun) + (seen / level)[:, None] * np.asarray(light.sky)
    return diffuse + below[:, None] * np.asarray(light.ground), lit * facing, open_sky


def shade(mesh: Mesh, light: Light, eye: Floats, points: Floats, face: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """(D, S) at points of faces, each [n, 3]: the radiance of a surface is albedo D + S.

    Args:
        eye: position of the camera, [3].
    """
    view = eye - points
    view /= np.linalg.norm(view, axis=1, keepdims=True)
    normal = mesh.normals[face]
    normal = normal * np.where((normal * view).sum(axis=1, keepdims=True) < 0, -1.0, 1.0)  # faces have two sides
    diffuse, lit, open_sky = falling(mesh, light, points, normal)
    part = mesh.part[face]
    base = np.array([m.mirror for m in mesh.materials])[part]
    shine = np.array([m.shine for m in mesh.materials])[part]
    cosine = np.clip((normal * view).sum(axis=1), 0, 1)
    fresnel = np.where(base > 0, base + (1 - base) * (1 - cosine) ** 5, 0.0)
    bounce = 2 * cosine[:, None] * normal - view
    up = np.clip(0.5 + 4 * bounce[:, 2], 0, 1)[:, None]  # a soft horizon
    mirrored = up * np.asarray(light.sky) * (1.25 - 0.5 * np.clip(bounce[:, 2:], 0, 1)) * open_sky[:, None]
    mirrored = mirrored + (1 - up) * 0.5 * np.asarray(light.ground)
    middle = view + light.direction
    middle /= np.linalg.norm(middle, axis=1, keepdims=True)
    glint = np.clip((normal * middle).sum(axis=1), 0, 1) ** np.maximum(shine, 1) * (shine + 8) / 8
    highlight = np.where(shine > 0, lit * fresnel * glint, 0.0)[:, None] * np.asarray(light.sun)
    return diffuse * (1 - fresnel)[:, None], fresnel[:, None] * mirrored + highlight


def near_ground(mesh: Mesh, camera: Camera) -> tuple[Floats, NDArray[np.bool_]]:
    """(points of the ground in the pixels [H, W, 3], which are so near that the mesh may darken them [H, W])."""
    points, there = camera.on_ground()
    return points, there & (np.linalg.norm(points - mesh.centre, axis=-1) < 3 * mesh.radius)


def ground_light(mesh: Mesh, light: Light, camera: Camera) -> Floats:
    """How much of its light each pixel of the ground still gets beside the mesh, [H, W, 3]; 1 above the horizon."""
    points, near = near_ground(mesh, camera)
    out = np.ones((*near.shape, 3))
    up = np.tile(np.array([0.0, 0.0, 1.0]), (int(near.sum()), 1))
    got, _, _ = falling(mesh, light, points[near], up)
    whole = np.asarray(light.sun) * light.direction[2] + np.asarray(light.sky)
    out[near] = got / whole
    return out
