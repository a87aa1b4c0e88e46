"""A z-buffer rasteriser in numpy: which face of a mesh a camera sees in each pixel, and how far away it is.

Every triangle is divided into its rows, and every row into its pixels, for all triangles at once. A pixel belongs to a
triangle if its centre is inside; of two triangles that share an edge exactly one gets a pixel on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from siegebench.errors import ConfigError
from siegebench.render.meshes import Floats, Ints, Mesh

AT_ONCE = 2**21  # pixels of triangles in memory at a time
NEAR = 0.05  # metres: nothing may be nearer to a camera


@dataclass(frozen=True, eq=False)
class Camera:
    """A pinhole camera, or an orthographic one.

    A point X has the coordinates (x, y, z) = R (X - position) of the camera: right, down, forward. Its pixel is
    focal (x / z, y / z) + centre, or focal (x, y) + centre if orthographic. The centre of the first pixel is at 0.5.

    Attributes:
        rotation: R, [3, 3].
        position: [3], metres.
        focal: pixels, or pixels per metre if orthographic.
        centre: of the picture, pixels.
        height, width: of the picture, pixels.
        orthographic: all rays are parallel.
    """

    rotation: Floats
    position: Floats
    focal: float
    centre: tuple[float, float]
    height: int
    width: int
    orthographic: bool = False

    def project(self, points: Floats) -> tuple[Floats, Floats]:
        """(pixels [..., 2], depths [...]) of points [..., 3]."""
        inside = (points - self.position) @ self.rotation.T
        depth = inside[..., 2]
        flat = inside[..., :2] if self.orthographic else inside[..., :2] / depth[..., None]
        return flat * self.focal + np.asarray(self.centre), depth

    def points(self, x: Floats, y: Floats, depth: Floats) -> Floats:
        """The points [..., 3] at these pixels and depths."""
        flat = np.stack([x - self.centre[0], y - self.centre[1]], axis=-1) / self.focal
        flat = flat if self.orthographic else flat * depth[..., None]
        return np.concatenate([flat, depth[..., None]], axis=-1) @ self.rotation + self.position

    def on_ground(self) -> tuple[Floats, NDArray[np.bool_]]:
        """(points of the plane z = 0 at the centres of the pixels [H, W, 3], where there is one [H, W])."""
        x, y = np.meshgrid(np.arange(self.width) + 0.5, np.arange(self.height) + 0.5)
        flat = np.stack(
            [(x - self.centre[0]) / self.focal, (y - self.centre[1]) / self.focal, np.ones_like(x)], axis=-1
        )
        ray = flat @ self.rotation
        there = ray[..., 2] < -1e-6
        depth = -self.position[2] / np.where(there, ray[..., 2], -1.0)
        return self.position + depth[..., None] * ray, there


def looking(position: Floats, target: Floats) -> Floats:
    """The rotation of a camera that looks at a target, with z up in the picture."""
    forward = (target - position) / np.linalg.norm(target - position)
    up = np.array([0.0, 0.0, 1.0]) if abs(forward[2]) < 0.999 else np.array([1.0, 0.0, 0.0])
    right = np.cross(forward, up)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(forward, right), forward])


@dataclass(frozen=True, eq=False)
class Seen:
    """What a camera sees.

    Attributes:
        face: index of the face in each pixel, int64 [H, W]; -1 where there is none.
        depth: metres along the viewing direction, [H, W]; inf where there is none.
    """

    face: Ints
    depth: Floats


def rasterise(mesh: Mesh, camera: Camera) -> Seen:
    """The nearest face in each pixel, and its depth.

    Raises:
        ConfigError: when the camera is inside the mesh or has a part of it behind.
    """
    if not camera.orthographic and ((mesh.vertices - camera.position) @ camera.rotation[2]).min() < NEAR:
        raise ConfigError(
            f"the camera is {np.linalg.norm(camera.position - mesh.centre):.3g} m from the centre of a mesh with the "
            f"radius {mesh.radius:.3g} m, so that a part of it is behind the camera; give a larger distance"
        )
    xy, z = camera.project(mesh.corners)
    plane = _planes(xy, z if camera.orthographic else 1 / z)
    size = camera.height * camera.width
    face, depth = np.full(size, -1, dtype=np.int64), np.full(size, np.inf)
    for owner, x, y in _pixels(xy, camera.height, camera.width):
        a, b, c = plane[owner].T
        value = a * (x + 0.5) + b * (y + 0.5) + c  # depth, or its inverse, is affine in the picture
        far = value if camera.orthographic else 1 / value
        at = y * camera.width + x
        before = depth[at]
        np.minimum.at(depth, at, far)
        won = (far == depth[at]) & (far < before)
        face[at[won][::-1]] = owner[won][::-1]  # of equals the first
    return Seen(face.reshape(camera.height, camera.width), depth.reshape(camera.height, camera.width))


def _planes(xy: Floats, value: Floats) -> Floats:
    """Coefficients (a, b, c) of value = a x + b y + c on each triangle, [F, 3]; zero for those without area."""
    d1, d2 = xy[:, 1] - xy[:, 0], xy[:, 2] - xy[:, 0]
    v1, v2 = value[:, 1] - value[:, 0], value[:, 2] - value[:, 0]
    area = d1[:, 0] * d2[:, 1] - d1[:, 1] * d2[:, 0]
    safe = np.where(np.abs(area) > 1e-12, area, np.inf)
    a = (v1 * d2[:, 1] - v2 * d1[:, 1]) / safe
    b = (v2 * d1[:, 0] - v1 * d2[:, 0]) / safe
    return np.stack([a, b, value[:, 0] - a * xy[:, 0, 0] - b * xy[:, 0, 1]], axis=1)


def _pixels(xy: Floats, height: int, width: int) -> Iterator[tuple[Ints, Ints, Ints]]:
    """(triangle, x, y) of every pixel whose centre is inside a triangle xy [F, 3, 2], some millions at a time."""
    top = np.clip(np.ceil(xy[:, :, 1].min(axis=1) - 0.5), 0, height).astype(np.int64)
    bottom = np.clip(np.ceil(xy[:, :, 1].max(axis=1) - 0.5), 0, height).astype(np.int64)
    d1, d2 = xy[:, 1] - xy[:, 0], xy[:, 2] - xy[:, 0]
    thin = np.abs(d1[:, 0] * d2[:, 1] - d1[:, 1] * d2[:, 0]) <= 1e-12
    triangle, row = ragged(np.where(thin, 0, bottom - top))
    y = row + top[triangle]
    left, right = _spans(xy[triangle], y + 0.5)
    first = np.clip(np.ceil(left - 0.5), 0, width).astype(np.int64)
    count = np.clip(np.ceil(right - 0.5), 0, width).astype(np.int64) - first
    ends = np.cumsum(count)
    start = 0
    while start < len(count):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + AT_ONCE, side="right")))
        span, x = ragged(count[start:stop])
        span += start
        yield triangle[span], x + first[span], y[span]
        start = stop


def _spans(corner: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Where the line at height y [R] enters and leaves a triangle [R, 3, 2]."""
    left, right = np.full(len(y), np.inf), np.full(len(y), -np.inf)
    for i in range(3):
        one, two = corner[:, i], corner[:, (i + 1) % 3]
        swap = (one[:, 1] > two[:, 1]) | ((one[:, 1] == two[:, 1]) & (one[:, 0] > two[:, 0]))
        low, high = np.where(swap[:, None], two, one), np.where(swap[:, None], one, two)  # the same for both neighbours
        crosses = (low[:, 1] <= y) & (y < high[:, 1])
        tall = np.where(crosses, high[:, 1] - low[:, 1], 1.0)
        x = low[:, 0] + (y - low[:, 1]) / tall * (high[:, 0] - low[:, 0])
        left = np.where(crosses, np.minimum(left, x), left)
        right = np.where(crosses, np.maximum(right, x), right)
    empty = left > right
    return np.where(empty, 0.0, left), np.where(empty, 0.0, right)


def ragged(counts: Ints) -> tuple[Ints, Ints]:
    """(i, j) for every j in range(counts[i]), for every i."""
    counts = np.maximum(counts, 0)
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
