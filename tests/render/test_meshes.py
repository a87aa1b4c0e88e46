"""Meshes of users: on the ground, in metres, with the parts of the file."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from siegebench.errors import DataError, MissingExtra
from siegebench.render.compose import compose
from siegebench.render.meshes import read
from siegebench.render.scenes import Pose, render

OBJ = """
mtllib car.mtl
v 0 0 5
v 4 0 5
v 4 2 5
v 0 2 5
v 0 0 6
v 4 0 6
v 4 2 6
v 0 2 6
o body
usemtl lacquer
f 1 2 6 5
f 2 3 7 6
f 3 4 8 7
f 4 1 5 8
o top
usemtl window
f 5 6 7 8
"""


@pytest.fixture
def car(tmp_path: Path) -> Path:
    """A box of 4 x 2 x 1 units, 5 above the ground, whose top is blue."""
    (tmp_path / "car.mtl").write_text("newmtl lacquer\nKd 1 1 1\nnewmtl window\nKd 0 0 1\n")
    (tmp_path / "car.obj").write_text(OBJ)
    return tmp_path / "car.obj"


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, car: Path) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "trimesh":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra, match=r"needs trimesh, .*pip install 'siegebench\[render\]'"):
        read(car)


def test_a_mesh_is_put_on_the_ground_and_scaled(car: Path) -> None:
    pytest.importorskip("trimesh")
    mesh = read(car, length=2.0)
    low, high = mesh.bounds
    np.testing.assert_allclose(low, [-1, -0.5, 0], atol=1e-9)
    np.testing.assert_allclose(high, [1, 0.5, 0.5], atol=1e-9)
    assert mesh.painted.all()


def test_only_the_named_parts_are_painted(car: Path) -> None:
    pytest.importorskip("trimesh")
    mesh = read(car, paint=["lacquer"])
    assert set(mesh.names) == {"paint", "window"}
    assert mesh.painted.sum() == 8
    assert (
        mesh.materials[mesh.names.index("window")].albedo[2]
        > 0.9
        > 0.1
        > mesh.materials[mesh.names.index("window")].albedo[0]
    )
    maps = render(mesh, Pose(30, 40, 9), (0, 50), torch.full((3, 32, 32), 90, dtype=torch.uint8))
    top = (maps.vehicle[0] > 0.99) & (maps.paint[0] == 0)
    image = compose(maps, torch.ones(3, 1, 1), 2.0)[0]
    assert (image[2] > image[0] + 0.2)[top].all()


def test_glb_has_y_up_and_looks_along_z(car: Path, tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh")
    box = trimesh.creation.box(extents=(2, 1, 4))  # width, height, length
    box.export(tmp_path / "car.glb")
    low, high = read(tmp_path / "car.glb").bounds
    np.testing.assert_allclose(high - low, [4, 2, 1], atol=1e-6)


def test_what_cannot_be_read_is_refused(car: Path, tmp_path: Path) -> None:
    pytest.importorskip("trimesh")
    with pytest.raises(DataError, match=r"has no part 'laquer' to paint. Did you mean lacquer"):
        read(car, paint=["laquer"])
    with pytest.raises(DataError, match="there is no such file"):
        read(tmp_path / "none.obj")
    (tmp_path / "text.glb").write_text("this is no mesh")
    with pytest.raises(DataError, match="not a readable mesh"):
        read(tmp_path / "text.glb")
    (tmp_path / "empty.obj").write_text("v 0 0 0\nv 1 0 0\n")
    with pytest.raises(DataError, match="mesh"):
        read(tmp_path / "empty.obj")
