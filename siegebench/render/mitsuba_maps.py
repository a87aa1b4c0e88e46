"""The maps of a scene, path-traced by mitsuba 3 (Jakob et al., BSD licence): soft sky, gloss, light reflected twice.

Mitsuba only renders pictures here. Two of them give the maps: A is that with black paint, M is that with white paint,
minus A. This is exact for light that is reflected once. Light that paint sends to other surfaces is that of grey paint.
Visibility and coordinates are those of the rasteriser, so that composing works as it does without mitsuba.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from siegebench.errors import MissingExtra
from siegebench.render.compose import linear
from siegebench.render.light import Light, near_ground
from siegebench.render.maps import Maps
from siegebench.render.meshes import PAINT, Floats, Material, Mesh
from siegebench.render.raster import Camera, rasterise
from siegebench.render.scenes import Pose, gathered, lit, triplanar

VARIANTS = ("cuda_ad_rgb", "llvm_ad_rgb", "scalar_rgb")  # the fastest first; the last needs nothing but the package
GREY = 0.214  # albedo, linear: sRGB 0.5
FAR = 500.0  # metres, half the side of the ground
PATIENCE = 120  # seconds for trying a variant


def version() -> str:
    """Of the installed mitsuba.

    Raises:
        MissingExtra: when it is not installed.
    """
    try:
        return importlib.metadata.version("mitsuba")
    except importlib.metadata.PackageNotFoundError:
        raise MissingExtra("mitsuba", "render", "path tracing") from None


@lru_cache(maxsize=1)
def variant() -> str:
    """The fastest variant of mitsuba that works here.

    Each is tried in a process of its own: with some versions of LLVM, the just-in-time compiler ends the process, and
    no exception can be caught. DRJIT_LIBLLVM_PATH names another libLLVM.

    Raises:
        MissingExtra: when mitsuba is not installed.
    """
    version()
    for name in VARIANTS[:-1]:
        if (name.startswith("cuda") and not torch.cuda.is_available()) or not _works(name):
            continue
        return name
    return VARIANTS[-1]


def _works(name: str) -> bool:
    code = f"from siegebench.render import mitsuba_maps; mitsuba_maps.trial({name!r})"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    try:
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def trial(name: str) -> None:
    """Render a tiny scene with a variant; may end the process."""
    from siegebench.render.vehicles import make

    mesh, light = make("crate", 0), Light(0, 45, (0.5, 0.5, 0.5), (0.3, 0.3, 0.3), (0.1, 0.1, 0.1))
    camera = Pose(30, 20, 8).camera(mesh.centre, 8, 8)
    assert np.isfinite(picture(mesh, camera, light, 0.5, spp=2, using=name)).all()


def render(
    mesh: Mesh, pose: Pose, sun: tuple[float, float], background: Tensor | None, *, ss: int = 2, label: int = 0,
    id: int = 0, size: tuple[int, int] | None = None, spp: int = 32, depth: int = 3,
) -> Maps:  # fmt: skip
    """The maps of one scene, as siegebench.render.scenes.render makes them.

    Args:
        background: uint8 or sRGB float [3, H, W]; around the mesh it gets darker as mitsuba's ground does. None shows
            mitsuba's own ground and sky.
        size: (H, W), without a background.
        spp: paths for each of the ss x ss samples of a pixel.
        depth: 2 for light that is reflected once, more for more.

    Raises:
        MissingExtra: when mitsuba is not installed.
        ConfigError: when the camera is inside the mesh, or the mesh is not in the picture.
    """
    behind = _behind(background, size)
    height, width = behind.shape[:2]
    camera = pose.camera(mesh.centre, height * ss, width * ss)
    light = lit(sun, behind)
    black = picture(mesh, camera, light, 0.0, spp=spp, depth=depth, seed=1)
    white = picture(mesh, camera, light, 1.0, spp=spp, depth=depth, seed=1)
    seen = rasterise(mesh, camera)

    def pooled(samples: Floats) -> Floats:
        return samples.reshape(height, ss, width, ss, -1).mean(axis=(1, 3))

    hit = seen.face >= 0
    centre = hit & mesh.painted[seen.face]
    m = np.maximum(white - black, 0)
    # samples at the edge of the paint show some of it, though not at their middle: they get the nearest coordinates
    if centre.any():
        away, nearest = distance_transform_edt(~centre, return_indices=True)
    else:
        away, nearest = np.full(hit.shape, np.inf), np.zeros((2, *hit.shape), dtype=np.int64)
    paint = (away < 1.5) & (m > 1e-4).any(axis=-1)
    y, x = np.nonzero(paint)
    from_y, from_x = nearest[0][y, x], nearest[1][y, x]
    face = seen.face[from_y, from_x]
    points = camera.points(from_x + 0.5, from_y + 0.5, seen.depth[from_y, from_x])
    rest = black + np.where(paint[..., None], 0.0, GREY * m)
    fixed = pooled(rest)
    if background is not None:
        ground = ~(hit | paint)
        share = pooled(ground[..., None].astype(np.float64))
        dark = pooled(rest * ground[..., None]) / np.maximum(share, 1e-9) / np.maximum(_ground(light), 1e-6)
        near = near_ground(mesh, pose.camera(mesh.centre, height, width))[1]
        fixed = pooled(rest * ~ground[..., None]) + share * behind * np.where(near[..., None], dark, 1.0)
    uv = triplanar(points, mesh.normals[face])
    return gathered(
        fixed, (y, x), m[y, x], uv, np.nonzero(centre), np.nonzero(hit), camera, pose, ss=ss, label=label, id=id
    )


def textured(
    mesh: Mesh, pose: Pose, sun: tuple[float, float], texture: Tensor, period: float, size: tuple[int, int],
    *, spp: int = 512, depth: int = 3, seed: int = 3,
) -> Tensor:  # fmt: skip
    """Mitsuba's own picture of a texture on the paint, linear RGB [3, H, W]: what composing is compared with.

    Args:
        texture: sRGB [3, h, w] in [0, 1]; it repeats after `period` metres.
    """
    camera = pose.camera(mesh.centre, *size)
    albedo = linear(texture.double()).permute(1, 2, 0).numpy()
    found = picture(mesh, camera, lit(sun, _behind(None, size)), albedo, spp=spp, depth=depth, seed=seed, period=period)
    return torch.from_numpy(found).permute(2, 0, 1)


def _behind(background: Tensor | None, size: tuple[int, int] | None) -> Floats:
    """The background in linear light, [H, W, 3]; grey of this size without one."""
    if background is None:
        assert size is not None, "without a background, give the size"
        return np.full((*size, 3), GREY)
    photo = linear(background.double() / 255 if background.dtype == torch.uint8 else background.double())
    return photo.permute(1, 2, 0).numpy()


def picture(
    mesh: Mesh, camera: Camera, light: Light, albedo: float | Floats, *, spp: int, depth: int = 3, seed: int = 0,
    period: float = 1.0, using: str | None = None,
) -> Floats:  # fmt: skip
    """Radiance [H, W, 3] of a mesh on the ground.

    Args:
        albedo: of the paint, linear: one number, or a texture [h, w, 3].
        period: of the texture, metres.
        using: variant of mitsuba.
    """
    name = using or variant()
    import mitsuba as mi

    mi.set_variant(name)
    scene: dict[str, Any] = {
        "type": "scene",
        "integrator": {"type": "path", "max_depth": depth},
        "sensor": _sensor(mi, camera),
        **_lights(mi, light),
    }
    with tempfile.TemporaryDirectory() as folder:
        for i, part in enumerate(mesh.names):
            file = Path(folder) / f"{i}.ply"
            _write_ply(file, mesh, i, period)
            bsdf = _bsdf(mi, mesh.materials[i], albedo if part == PAINT else None)
            scene[f"part{i}"] = {"type": "ply", "filename": str(file), "face_normals": True, "bsdf": bsdf}
        built = mi.load_dict(scene)
    return np.array(mi.render(built, spp=spp, seed=seed), dtype=np.float64)[..., :3]


def _sensor(mi: Any, camera: Camera) -> dict[str, Any]:
    target = camera.position + camera.rotation[2]
    return {
        "type": "perspective",
        "to_world": mi.ScalarTransform4f().look_at(
            origin=camera.position.tolist(), target=target.tolist(), up=[0, 0, 1]
        ),
        "fov": float(2 * np.degrees(np.arctan(camera.width / 2 / camera.focal))),
        "fov_axis": "x",
        "principal_point_offset_x": float(0.5 - camera.centre[0] / camera.width),
        "principal_point_offset_y": float(0.5 - camera.centre[1] / camera.height),
        "film": {
            "type": "hdrfilm", "width": camera.width, "height": camera.height, "pixel_format": "rgb",
            "component_format": "float32", "rfilter": {"type": "box"},
        },
        "sampler": {"type": "independent"},
    }  # fmt: skip


def _lights(mi: Any, light: Light) -> dict[str, Any]:
    """Sun, sky and ground. A white surface with irradiance E has the radiance E / pi."""
    reflected = _ground(light) / np.maximum(_open(light), 1e-6)
    return {
        "sun": {
            "type": "directional", "direction": (-light.direction).tolist(),
            "irradiance": {"type": "rgb", "value": [np.pi * v for v in light.sun]},
        },
        "sky": {"type": "constant", "radiance": {"type": "rgb", "value": list(light.sky)}},
        "ground": {
            "type": "rectangle", "to_world": mi.ScalarTransform4f().scale([FAR, FAR, 1]),
            "bsdf": {"type": "diffuse", "reflectance": {"type": "rgb", "value": reflected.tolist()}},
        },
    }  # fmt: skip


def _open(light: Light) -> Floats:
    """Radiance [3] of a white horizontal surface under an open sky."""
    return np.asarray(light.sun) * light.direction[2] + np.asarray(light.sky)


def _ground(light: Light) -> Floats:
    """Radiance [3] of the ground far away from the mesh."""
    return np.minimum(np.asarray(light.ground), 0.95 * _open(light))


def _bsdf(mi: Any, material: Material, albedo: float | Floats | None) -> dict[str, Any]:
    """A diffuse surface, under a rough clear coat if it mirrors."""
    colour: dict[str, Any]
    if isinstance(albedo, np.ndarray):
        bitmap = mi.Bitmap(np.ascontiguousarray(albedo, dtype=np.float32))
        colour = {"type": "bitmap", "bitmap": bitmap, "raw": True, "wrap_mode": "repeat", "filter_type": "bilinear"}
    else:
        value = list(material.albedo) if albedo is None else [float(albedo)] * 3
        colour = {"type": "rgb", "value": value}
    if not material.mirror:
        return {"type": "twosided", "bsdf": {"type": "diffuse", "reflectance": colour}}
    root = np.sqrt(material.mirror)
    coat = {
        "type": "roughplastic", "diffuse_reflectance": colour, "nonlinear": False, "distribution": "ggx",
        "int_ior": float((1 + root) / (1 - root)), "alpha": float(np.sqrt(2 / (material.shine + 2))),
    }  # fmt: skip
    return {"type": "twosided", "bsdf": coat}


def _write_ply(file: Path, mesh: Mesh, part: int, period: float) -> None:
    """The faces of one part, with their triplanar coordinates in periods."""
    mine = mesh.part == part
    corners = mesh.corners[mine].reshape(-1, 3)
    uv = triplanar(corners, np.repeat(mesh.normals[mine], 3, axis=0)) / period
    vertex = np.concatenate([corners, uv], axis=1).astype("<f4")
    count = len(vertex) // 3
    face: NDArray[Any] = np.zeros(count, dtype=[("n", "u1"), ("i", "<i4", 3)])
    face["n"], face["i"] = 3, np.arange(3 * count).reshape(-1, 3)
    names = "".join(f"property float {n}\n" for n in ("x", "y", "z", "u", "v"))
    header = (
        f"ply\nformat binary_little_endian 1.0\nelement vertex {3 * count}\n{names}"
        f"element face {count}\nproperty list uchar int vertex_indices\nend_header\n"
    )
    file.write_bytes(header.encode() + vertex.tobytes() + face.tobytes())
