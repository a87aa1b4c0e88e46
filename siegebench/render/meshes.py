"""Meshes: triangles in metres, grouped into named parts; and reading those of users.

The axes are x forward, y left, z up. The ground is the plane z = 0, and a mesh stands on it around the origin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from siegebench.errors import DataError, MissingExtra, did_you_mean

Floats = NDArray[np.floating[Any]]  # computed in float64
Ints = NDArray[np.int64]

PAINT = "paint"  # the part that carries the texture


@dataclass(frozen=True)
class Material:
    """How a part reflects light.

    Attributes:
        albedo: diffuse, linear RGB in [0, 1]; that of paint is replaced by the texture.
        mirror: share of light that is reflected at normal incidence, 0.04 for lacquer and glass.
        shine: exponent of the highlight of the sun; 0 for none.
    """

    albedo: tuple[float, float, float]
    mirror: float = 0.0
    shine: float = 0.0


MATERIALS = {
    PAINT: Material((0.5, 0.5, 0.5), 0.04, 40.0),
    "glass": Material((0.012, 0.015, 0.018), 0.08, 300.0),
    "tyre": Material((0.018, 0.018, 0.02)),
    "rim": Material((0.42, 0.43, 0.45), 0.1, 40.0),
    "trim": Material((0.035, 0.035, 0.038), 0.03, 20.0),
    "lamp": Material((0.75, 0.75, 0.7), 0.06, 200.0),
    "tail": Material((0.35, 0.012, 0.015), 0.05, 100.0),
    "plate": Material((0.62, 0.62, 0.55)),
    "wood": Material((0.16, 0.1, 0.055)),
    "stone": Material((0.3, 0.28, 0.25)),
}
PLAIN = Material((0.2, 0.2, 0.2))


@dataclass(frozen=True, eq=False)
class Mesh:
    """Triangles with flat normals.

    Attributes:
        vertices: [V, 3], metres.
        faces: [F, 3], indices of vertices; either orientation.
        part: [F], index into `names`.
        names: of the parts; the texture is on `paint`.
        materials: of the parts.
    """

    vertices: Floats
    faces: Ints
    part: Ints
    names: tuple[str, ...]
    materials: tuple[Material, ...]

    @cached_property
    def corners(self) -> Floats:
        """Corners of the faces, [F, 3, 3]."""
        return self.vertices[self.faces]

    @cached_property
    def normals(self) -> Floats:
        """Unit normals of the faces, [F, 3]; zero for a face without area."""
        a, b, c = self.corners[:, 0], self.corners[:, 1], self.corners[:, 2]
        n = np.cross(b - a, c - a)
        length = np.linalg.norm(n, axis=1, keepdims=True)
        return n / np.where(length > 0, length, 1.0)

    @cached_property
    def painted(self) -> NDArray[np.bool_]:
        """Which faces carry the texture, [F]."""
        return np.array([name == PAINT for name in self.names])[self.part]

    @cached_property
    def bounds(self) -> tuple[Floats, Floats]:
        """The lowest and the highest coordinates."""
        return self.vertices.min(axis=0), self.vertices.max(axis=0)

    @cached_property
    def centre(self) -> Floats:
        """The centre of the bounding box, where cameras look."""
        low, high = self.bounds
        return (low + high) / 2

    @cached_property
    def radius(self) -> float:
        """Of the sphere around the centre that contains the mesh."""
        return float(np.linalg.norm(self.vertices - self.centre, axis=1).max())


class Builder:
    """Collects polygons by part, and makes a mesh of them."""

    def __init__(self) -> None:
        self._corners: list[Floats] = []
        self._names: list[str] = []

    def polygon(self, part: str, *points: Sequence[float] | Floats) -> None:
        """A convex polygon, as a fan of triangles."""
        p = np.asarray(points, dtype=np.float64)
        for i in range(1, len(p) - 1):
            self._corners.append(p[[0, i, i + 1]])
            self._names.append(part)

    def loft(self, part: str, rings: Sequence[Floats], *, closed: bool = True) -> None:
        """A tube through rings of equal length [k, 3], with its two ends if it is closed."""
        for one, two in pairwise(rings):
            for i in range(len(one)):
                j = (i + 1) % len(one)
                self.polygon(part, one[i], one[j], two[j], two[i])
        if closed:
            self.polygon(part, *rings[0])
            self.polygon(part, *rings[-1])

    def box(self, part: str, low: Sequence[float], high: Sequence[float]) -> None:
        """A box with edges along the axes."""
        (x0, y0, z0), (x1, y1, z1) = low, high
        ring = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
        self.loft(part, [np.array([(x, y, z) for x, y in ring], dtype=np.float64) for z in (z0, z1)])

    def mesh(self) -> Mesh:
        """The mesh; every face has corners of its own."""
        names = tuple(dict.fromkeys(self._names))
        number = {name: i for i, name in enumerate(names)}
        vertices = np.concatenate(self._corners)
        return Mesh(
            vertices, np.arange(len(vertices)).reshape(-1, 3), np.array([number[n] for n in self._names]), names,
            tuple(MATERIALS.get(name, PLAIN) for name in names),
        )  # fmt: skip


def read(
    path: str | Path, *, paint: Sequence[str] = (), length: float | None = None, up: Literal["y", "z"] | None = None
) -> Mesh:
    """A mesh from an .obj or .glb file, put on the ground around the origin.

    Parts are the file's objects by name, or by the name of their material. Their colours are those of the materials.

    Args:
        paint: names of the parts that carry the texture; all of them when empty.
        length: of the mesh along x, in metres, to which it is scaled; None keeps the file's units.
        up: the file's vertical axis; by default y for .glb and .gltf, as their standard says, else z.

    Raises:
        MissingExtra: when trimesh is not installed.
        DataError: when the file cannot be read, has no triangles, or lacks a part that is named.
    """
    try:
        import trimesh
    except ImportError:
        raise MissingExtra("trimesh", "render", "reading a mesh from a file") from None
    file = Path(path).expanduser()
    if not file.is_file():
        raise DataError(f"mesh {file}: there is no such file; give the path of an .obj or .glb file")
    try:
        scene = trimesh.load_scene(file)
        found = [(_part_name(g, name), g) for name, g in _placed(scene) if len(getattr(g, "faces", ()))]
    except Exception as error:  # trimesh raises whatever its readers raise
        raise DataError(f"mesh {file}: not a readable mesh ({str(error)[:120]}); give an .obj or .glb file") from None
    if not found:
        raise DataError(f"mesh {file}: contains no triangles; give an .obj or .glb file with a surface")
    names = tuple(dict.fromkeys(name for name, _ in found))
    if unknown := [name for name in paint if name not in names]:
        raise DataError(f"mesh {file}: has no part {unknown[0]!r} to paint. {did_you_mean(unknown[0], names)}")
    vertices = np.concatenate([np.asarray(g.vertices, dtype=np.float64) for _, g in found])
    if not np.isfinite(vertices).all():
        raise DataError(f"mesh {file}: has vertices that are not finite; export it again")
    starts = np.cumsum([0, *(len(g.vertices) for _, g in found)])
    faces = np.concatenate(
        [np.asarray(g.faces, dtype=np.int64) + at for at, (_, g) in zip(starts, found, strict=False)]
    )
    part = np.concatenate([np.full(len(g.faces), names.index(name)) for name, g in found])
    if (up or ("y" if file.suffix.lower() in (".glb", ".gltf") else "z")) == "y":
        vertices = np.stack([vertices[:, 2], vertices[:, 0], vertices[:, 1]], axis=1)  # glTF: +z forward, +x left
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    vertices = vertices - np.array([*((low + high) / 2)[:2], low[2]])
    if length is not None:
        vertices = vertices * (length / max(high[0] - low[0], 1e-12))
    own = {name: _material(g) for name, g in reversed(found)}
    painted = set(paint) or set(names)
    return Mesh(
        vertices, faces, part,
        tuple(PAINT if n in painted else (f"{n} (file)" if n == PAINT else n) for n in names),
        tuple(MATERIALS[PAINT] if n in painted else own[n] for n in names),
    )  # fmt: skip


def _placed(scene: Any) -> list[tuple[str, Any]]:
    """(name, geometry in the coordinates of the scene) of every object."""
    out = []
    for node in scene.graph.nodes_geometry:
        place, name = scene.graph[node]
        geometry = scene.geometry[name].copy()
        geometry.apply_transform(place)
        out.append((str(name), geometry))
    return out


def _part_name(geometry: Any, name: str) -> str:
    """The material's name if it has one that says something, else the object's."""
    said = getattr(getattr(getattr(geometry, "visual", None), "material", None), "name", None)
    return said if said and not str(said).startswith("material") else name


def _material(geometry: Any) -> Material:
    """The colour that the file gives, as linear albedo."""
    material = getattr(getattr(geometry, "visual", None), "material", None)
    colour = getattr(material, "main_color", None)
    if colour is None:
        return PLAIN
    r, g, b = (np.asarray(colour, dtype=np.float64)[:3] / 255) ** 2.2
    return Material((float(r), float(g), float(b)), 0.04, 30.0)
