"""Scenes: a mesh, a camera, light and a background; how they are drawn by id, and their maps.

Scenes of the splits `train` and `test` have nothing in common: other vehicles, other directions of view (sectors of
azimuth alternate), other backgrounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from siegebench.draws import Draws, derive_seed
from siegebench.errors import ConfigError
from siegebench.render import light as lighting
from siegebench.render.compose import linear
from siegebench.render.light import Light
from siegebench.render.maps import Maps
from siegebench.render.meshes import Floats, Mesh
from siegebench.render.raster import Camera, looking, rasterise
from siegebench.render.vehicles import OTHERS, VEHICLES, make

Samples = tuple[NDArray[Any], ...]  # (y, x) of samples, [n] each
SPLITS = ("train", "test")
SECTOR = 7.5  # degrees of azimuth; even sectors are views of the training set


@dataclass(frozen=True)
class Pose:
    """Where the camera is, relative to the middle of the mesh, and how wide it sees.

    Attributes:
        azimuth: degrees; 0 is in front of the vehicle, 90 on its left.
        pitch: degrees above the horizon.
        distance: metres.
        fov: degrees, of the whole width of the picture.
        across, down: how far the mesh is from the middle of the picture, in shares of its width.
    """

    azimuth: float
    pitch: float
    distance: float
    fov: float = 40.0
    across: float = 0.0
    down: float = 0.0

    def fitting(self, mesh: Mesh) -> Pose:
        """The same direction, from far enough away for the mesh to fit into a picture around it."""
        return replace(self, distance=max(self.distance, float(mesh.radius / np.sin(np.radians(self.fov) / 2))))

    def camera(self, target: Floats, height: int, width: int) -> Camera:
        """The camera of a picture of this size that looks at a target."""
        a, p = np.radians(self.azimuth), np.radians(self.pitch)
        position = target + self.distance * np.array([np.cos(p) * np.cos(a), np.cos(p) * np.sin(a), np.sin(p)])
        centre = (width * (0.5 + self.across), height / 2 + width * self.down)
        return Camera(
            looking(position, target), position, width / 2 / np.tan(np.radians(self.fov) / 2), centre, height, width
        )


@dataclass(frozen=True)
class Scene:
    """Everything that a picture shows, but the texture.

    Attributes:
        id: in its split.
        kind: of VEHICLES or OTHERS.
        vehicle: seed of the mesh.
        pose: of the camera.
        sun: (azimuth, elevation) in degrees, as of Light.
        background: of the photographs of the split, as a number in [0, 1); or seed of a procedural one.
    """

    id: int
    kind: str
    vehicle: int
    pose: Pose
    sun: tuple[float, float]
    background: float

    @property
    def mesh(self) -> Mesh:
        """The procedural mesh."""
        return make(self.kind, self.vehicle)


def draw(
    split: str, ids: Sequence[int], *, seed: int = 0, vehicles: int = 24,
    distance: tuple[float, float] = (7.0, 13.0), pitch: tuple[float, float] = (4.0, 32.0),
) -> list[Scene]:  # fmt: skip
    """The scenes of a split by id: even ids show vehicles, one kind after the other, odd ids other things.

    Args:
        seed: of all random numbers.
        vehicles: meshes of each kind in a split.
        distance: metres, from the middle of the mesh.
        pitch: degrees.

    Raises:
        ConfigError: for an unknown split.
    """
    if split not in SPLITS:
        raise ConfigError(f"scenes: the splits are {' and '.join(SPLITS)}, found {split!r}")
    draws = Draws(derive_seed(seed, "scenes", split), torch.tensor(list(ids), dtype=torch.long))
    numbers = draws.uniform((9,), purpose="pose").double().tolist()
    mesh = draws.integers(vehicles, purpose="mesh").tolist()
    sectors = int(360 / SECTOR / 2)
    out: list[Scene] = []
    for i, which, u in zip(ids, mesh, numbers, strict=True):
        kinds = VEHICLES if i % 2 == 0 else OTHERS
        kind = kinds[i // 2 % len(kinds)]
        sector = 2 * int(u[0] * sectors) + SPLITS.index(split)
        pose = Pose(
            azimuth=(sector + u[1]) * SECTOR,
            pitch=pitch[0] + u[2] * (pitch[1] - pitch[0]),
            distance=distance[0] + u[3] * (distance[1] - distance[0]),
            across=0.12 * (u[4] - 0.5),
            down=0.1 * (u[5] - 0.5),
        )
        vehicle = derive_seed(seed, "mesh", split, kind, which)
        out.append(Scene(i, kind, vehicle, pose, (360 * u[6], 28 + 40 * u[7]), u[8]))
    return out


def lit(sun: tuple[float, float], background: Floats) -> Light:
    """Light that goes with a photograph: bright in a bright one, the sky's colour from its upper part.

    Args:
        sun: (azimuth, elevation), degrees.
        background: linear RGB, [H, W, 3].
    """
    third = max(1, len(background) // 3)
    above, below = background[:third].mean(axis=(0, 1)), background[-third:].mean(axis=(0, 1))
    bright = float(np.clip(0.45 + 1.1 * background.mean(), 0.5, 0.9))
    sky = 0.55 * above / max(above.mean(), 1e-3) + 0.45
    ground = np.clip(0.35 * below / max(below.mean(), 1e-3) + 0.65, 0, 1.5)
    strength = 0.62 * bright / max(np.sin(np.radians(sun[1])), 0.5)
    return Light(
        sun[0],
        sun[1],
        _rgb(strength * np.array([1.06, 1.0, 0.9])),
        _rgb(0.34 * bright * sky),
        _rgb(0.2 * bright * ground),
    )


def _rgb(value: Floats) -> tuple[float, float, float]:
    return float(value[0]), float(value[1]), float(value[2])


def render(
    mesh: Mesh, pose: Pose, sun: tuple[float, float], background: Tensor, *, ss: int = 2, label: int = 0, id: int = 0
) -> Maps:
    """The maps of one scene, from the rasteriser.

    Args:
        background: uint8 or sRGB float [3, H, W]; the picture has its size.
        sun: (azimuth, elevation), degrees.
        ss: samples along each side of a pixel.
        label, id: kept in the maps.

    Raises:
        ConfigError: when the camera is inside the mesh, or the mesh is not in the picture.
    """
    photo = linear(background.double() / 255 if background.dtype == torch.uint8 else background.double())
    behind = photo.permute(1, 2, 0).numpy()
    height, width = behind.shape[:2]
    light = lit(sun, behind)
    camera = pose.camera(mesh.centre, height * ss, width * ss)
    seen = rasterise(mesh, camera)
    y, x = np.nonzero(seen.face >= 0)
    if not len(y):
        raise ConfigError(
            f"the mesh is not in the picture of the camera at {pose}; look nearer, or change across and down"
        )
    face = seen.face[y, x]
    points = camera.points(x + 0.5, y + 0.5, seen.depth[y, x])
    diffuse, mirrored = lighting.shade(mesh, light, camera.position, points, face)
    painted = mesh.painted[face]
    albedo = np.array([m.albedo for m in mesh.materials])[mesh.part[face]]
    fixed = mirrored + np.where(painted[:, None], 0.0, albedo * diffuse)

    ground = behind * lighting.ground_light(mesh, light, pose.camera(mesh.centre, height, width))
    share = _pooled((y, x), np.ones((len(y), 1)), height, width, ss)
    a = _pooled((y, x), fixed, height, width, ss) + (1 - share) * ground
    uv = triplanar(points[painted], mesh.normals[face[painted]])
    inside = (y[painted], x[painted])
    return gathered(a, inside, diffuse[painted], uv, inside, (y, x), camera, pose, ss=ss, label=label, id=id)


def gathered(
    a: Floats, at: Samples, m: Floats, uv: Floats, paint: Samples, hit: Samples,
    camera: Camera, pose: Pose, *, ss: int, label: int, id: int,
) -> Maps:  # fmt: skip
    """The maps of one scene from arrays.

    Args:
        a: [H, W, 3].
        at: (y, x) of the samples that the texture lights, [P] each.
        m, uv: of these samples, [P, 3] and [P, 2].
        paint, hit: (y, x) of the samples whose middle shows paint, and of those whose middle shows the mesh.
        camera: of the samples.
    """
    (height, width), (y, x) = a.shape[:2], hit
    coverage = [_pooled(some, np.ones((len(some[0]), 1)), height, width, ss)[..., 0] for some in (paint, hit)]
    return Maps(
        a=_float(a).permute(2, 0, 1)[None], m=_float(m)[None], uv=_float(uv)[None],
        place=torch.from_numpy(at[0] * (width * ss) + at[1])[None],
        paint=_float(coverage[0])[None], vehicle=_float(coverage[1])[None],
        box=torch.tensor([[x.min() / ss, y.min() / ss, (x.max() + 1) / ss, (y.max() + 1) / ss]], dtype=torch.float32),
        middle=torch.tensor([[*camera.centre, pose.distance / camera.focal]], dtype=torch.float32),
        labels=torch.tensor([label]), ids=torch.tensor([id]), ss=ss,
    )  # fmt: skip


def triplanar(points: Floats, normals: Floats) -> Floats:
    """Coordinates [n, 2] of points in the plane of the dominant axis of their normals, metres, down positive."""
    axis = np.abs(normals).argmax(axis=1)
    first = np.where(axis == 0, 1, 0)
    second = np.where(axis == 2, 1, 2)
    rows = np.arange(len(points))
    return np.stack([points[rows, first], -points[rows, second]], axis=1)


def _pooled(at: Samples, value: Floats, height: int, width: int, ss: int) -> Floats:
    """Sums of samples [n, c] at (y, x) by pixel, divided by the number of samples in a pixel: [H, W, c]."""
    cell = at[0] // ss * width + at[1] // ss
    sums = [np.bincount(cell, weights=value[:, c], minlength=height * width) for c in range(value.shape[1])]
    return np.stack(sums, axis=-1).reshape(height, width, -1) / ss**2


def _float(value: Floats) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(value, dtype=np.float32))


def procedural(seed: int, height: int, width: int) -> Tensor:
    """A background without a photograph: a sky, hills, and ground with noise of several sizes; uint8 [3, H, W]."""
    draws = Draws(derive_seed(seed, "background"), torch.zeros(1, dtype=torch.long))
    u = draws.uniform((24,), purpose="colours")[0]
    y = (torch.arange(height, dtype=torch.float64) / height)[:, None]
    x = (torch.arange(width, dtype=torch.float64) / width)[None, :]
    horizon = 0.28 + 0.18 * float(u[0])
    hills = sum(
        0.04 * float(u[1 + k]) * torch.sin(2 * torch.pi * ((k + 1) * x + float(u[5 + k]))) / (k + 1) for k in range(4)
    )
    sky = torch.tensor([0.35, 0.5, 0.75]) + 0.25 * (u[9:12] - 0.5)
    haze = 0.6 + 0.3 * u[12:15]
    grass = torch.tensor([0.32, 0.32, 0.26]) + 0.36 * (u[15:18] - 0.4)
    hill = (grass * (0.4 + 0.5 * float(u[18]))) * 0.6 + 0.4 * haze * 0.6
    rough = torch.zeros(height, width, dtype=torch.float64)
    for k, cells in enumerate((4, 8, 16, 32, 64)):
        noise = draws.normal((1, 1, cells, cells), purpose=f"noise {k}")[0]
        rough += torch.nn.functional.interpolate(noise, (height, width), mode="bilinear")[0, 0].double() / (k + 1.5)
    down = (y / horizon).clamp(0, 1)[..., None]
    above = sky * (1 - down) + haze * down + 0.02 * rough[..., None]
    below = grass * (0.75 + 0.45 * (y[..., None] - horizon)) * (1 + 0.16 * float(0.4 + u[19]) * rough[..., None])
    far = hill * (1 + 0.08 * rough[..., None])
    line = y + 0 * x
    picture = torch.where((line < horizon - 0.03 + hills)[..., None], above, far)
    picture = torch.where((line > horizon + 0.03)[..., None], below, picture)
    return (picture.clamp(0, 1) * 255).round().to(torch.uint8).permute(2, 0, 1)
