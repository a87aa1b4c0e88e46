"""The rasteriser and the light, against geometry in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from siegebench.errors import ConfigError
from siegebench.render.light import Light, falling, ground_light, shadow_map
from siegebench.render.meshes import Builder, Mesh
from siegebench.render.raster import Camera, Seen, looking, ragged, rasterise
from siegebench.render.scenes import Pose, render, triplanar
from siegebench.render.vehicles import KINDS, make

GREY = torch.full((3, 64, 64), 128, dtype=torch.uint8)


def box(part: str = "paint", low: tuple[float, ...] = (-1, -1, 0), high: tuple[float, ...] = (1, 1, 2)) -> Mesh:
    out = Builder()
    out.box(part, low, high)
    return out.mesh()


def front(size: int = 200, distance: float = 10.0) -> tuple[Mesh, Camera, Seen]:
    """A cube, seen from straight in front."""
    mesh, pose = box(), Pose(azimuth=0, pitch=0, distance=distance, fov=30)
    camera = pose.camera(mesh.centre, size, size)
    return mesh, camera, rasterise(mesh, camera)


def test_silhouette_and_depth_of_a_cube_are_those_of_its_projection() -> None:
    _, camera, seen = front()
    half = camera.focal * 1 / 9  # the front side is 9 m away
    at = np.abs(np.arange(200) + 0.5 - 100) < half
    np.testing.assert_array_equal(seen.face >= 0, at[:, None] & at[None, :])
    np.testing.assert_allclose(seen.depth[seen.face >= 0], 9.0)
    assert np.isinf(seen.depth[seen.face < 0]).all()


def test_depth_on_a_slanted_side_is_that_of_the_ray() -> None:
    mesh = box()
    camera = Pose(azimuth=30, pitch=25, distance=8).camera(mesh.centre, 90, 120)
    seen = rasterise(mesh, camera)
    y, x = np.nonzero(seen.face >= 0)
    points = camera.points(x + 0.5, y + 0.5, seen.depth[y, x])
    # on the surface of the cube: the largest coordinate, measured from its middle, is 1
    np.testing.assert_allclose(np.abs(points - mesh.centre).max(axis=1), 1.0, atol=1e-9)
    back, depth = camera.project(points)
    np.testing.assert_allclose(back, np.stack([x + 0.5, y + 0.5], axis=1), atol=1e-7)
    np.testing.assert_allclose(depth, seen.depth[y, x])


def test_the_nearer_of_two_wins_whatever_their_order() -> None:
    for flip in (False, True):
        out = Builder()
        for x in (0.0, 1.0) if flip else (1.0, 0.0):
            out.polygon(f"at {x:g}", (x, -1, 0), (x, 1, 0), (x, 1, 2), (x, -1, 2))
        mesh = out.mesh()
        seen = rasterise(mesh, Pose(0, 0, 10).camera(mesh.centre, 50, 50))
        assert {mesh.names[i] for i in mesh.part[seen.face[seen.face >= 0]]} == {"at 1"}


def test_triangles_that_share_edges_leave_no_gap_and_no_pixel_twice() -> None:
    rng = np.random.default_rng(0)
    n = 12  # a fan of random triangles around a point
    angle = np.sort(rng.uniform(0, 2 * np.pi, n))
    ring = np.stack([np.zeros(n), np.cos(angle), np.sin(angle)], axis=1) * 0.9
    out = Builder()
    for i in range(n):
        out.polygon("paint", (0, 0, 0), ring[i], ring[(i + 1) % n])
    fan, position = out.mesh(), np.array([5.0, 0, 0])
    camera = Camera(looking(position, np.zeros(3)), position, 33.0, (40, 40), 80, 80, orthographic=True)
    apart = np.zeros((80, 80), dtype=int)
    for i in range(n):
        one = Mesh(fan.vertices, fan.faces[i : i + 1], fan.part[i : i + 1], fan.names, fan.materials)
        apart += rasterise(one, camera).face >= 0
    hit = rasterise(fan, camera).face >= 0
    np.testing.assert_array_equal(apart, hit.astype(int))
    rows = hit.any(axis=1)
    spans = [np.flatnonzero(row) for row in hit[rows]]
    assert sum(len(s) == s[-1] - s[0] + 1 for s in spans) >= len(spans) - 8  # only the rim of the polygon is not convex


def test_many_triangles_are_divided_into_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = make("sedan", 1)
    camera = Pose(40, 20, 9).camera(mesh.centre, 64, 64)
    whole = rasterise(mesh, camera)
    monkeypatch.setattr("siegebench.render.raster.AT_ONCE", 100)
    parts = rasterise(mesh, camera)
    np.testing.assert_array_equal(whole.face, parts.face)
    np.testing.assert_array_equal(whole.depth, parts.depth)


def test_a_camera_inside_is_refused() -> None:
    with pytest.raises(ConfigError, match="give a larger distance"):
        render(box(), Pose(0, 0, 1.0), (0, 45), GREY)


def test_a_mesh_out_of_the_picture_is_refused() -> None:
    with pytest.raises(ConfigError, match="not in the picture"):
        render(box(), Pose(0, 0, 20.0, across=2.0), (0, 45), GREY)


def test_ragged_ranges() -> None:
    owner, inside = ragged(np.array([2, 0, 3]))
    assert owner.tolist() == [0, 0, 2, 2, 2]
    assert inside.tolist() == [0, 1, 0, 1, 2]


def test_uv_is_metres_in_the_plane_of_the_dominant_axis() -> None:
    points = np.array([[1.0, 2.0, 3.0]] * 3)
    normals = np.array([[0.9, 0.3, 0.3], [0.1, -0.9, 0.4], [0.1, 0.2, 0.8]])
    assert triplanar(points, normals).tolist() == [[2, -3], [1, -3], [1, -2]]


def test_uv_of_a_side_in_a_rendered_scene() -> None:
    maps = render(box(), Pose(azimuth=0, pitch=0, distance=10, fov=30), (0, 45), GREY, ss=2)
    focal = 64 / np.tan(np.radians(15))
    x, y = maps.place[0] % 128 + 0.5, maps.place[0] // 128 + 0.5
    # 9 m away; the camera looks along -x, so y is on its left, and its middle is 1 m above the ground
    expected = torch.stack([-(64 - x) * -9 / focal, (y - 64) * 9 / focal - 1], dim=1)
    expected[:, 0] = (x - 64) * 9 / focal
    torch.testing.assert_close(maps.uv[0], expected.float(), atol=1e-5, rtol=0)
    torch.testing.assert_close(maps.box[0], torch.tensor([1.0, 1.0, 63.0, 63.0]).new_tensor(edges(focal)))


def edges(focal: float) -> list[float]:
    """The box of the front side, to the sample."""
    inside = [i for i in range(128) if abs(i + 0.5 - 64) < focal / 9]
    return [inside[0] / 2, inside[0] / 2, (inside[-1] + 1) / 2, (inside[-1] + 1) / 2]


# --------------------------------------------------------------------------------------------------------------- light

SUN = Light(azimuth=0, elevation=45, sun=(0.5, 0.5, 0.5), sky=(0.3, 0.3, 0.3), ground=(0.1, 0.1, 0.1))


def test_the_side_towards_the_sun_is_lit_by_it_and_the_other_is_not() -> None:
    mesh = box()
    points = np.array([[1.0, 0, 1], [-1.0, 0, 1], [0, 0, 2]])
    normals = np.array([[1.0, 0, 0], [-1.0, 0, 0], [0, 0, 1]])
    _, lit, open_sky = falling(mesh, SUN, points, normals)
    np.testing.assert_allclose(lit, [np.sqrt(0.5), 0, np.sqrt(0.5)], atol=1e-6)
    assert open_sky[2] == 1.0  # nothing is above the top


def test_light_on_an_open_horizontal_surface_is_sun_and_sky() -> None:
    points, up = np.array([[0.0, 0, 2.0]]), np.array([[0.0, 0, 1.0]])
    diffuse, _, _ = falling(box(), SUN, points, up)
    np.testing.assert_allclose(diffuse, 0.5 * np.sqrt(0.5) + 0.3, atol=1e-6)


def test_the_shadow_of_a_cube_is_where_geometry_puts_it() -> None:
    mesh = box()
    shadows = shadow_map(mesh, SUN.direction, 512)
    # the sun stands at 45 degrees in front: the shadow of the top edge, 2 m up at x = -1, is at x = -3
    x = np.array([-3.1, -2.9, -1.5, 1.1])
    open_ = shadows.open(np.stack([x, 0 * x, 0 * x], axis=1), soft=True)
    assert open_.tolist() == [1.0, 0.0, 0.0, 1.0]


def test_the_ground_is_darker_behind_the_cube_and_as_before_far_away() -> None:
    mesh = box()
    camera = Pose(azimuth=90, pitch=60, distance=14, fov=60).camera(mesh.centre, 60, 60)
    light = ground_light(mesh, SUN, camera)[..., 0]
    points, _ = camera.on_ground()
    behind = (np.abs(points[..., 0] + 2) < 0.5) & (np.abs(points[..., 1]) < 0.5)
    ahead = (np.abs(points[..., 0] - 4) < 0.5) & (np.abs(points[..., 1]) < 0.5)
    assert light[behind].max() < 0.5 < 0.85 < light[ahead].min()
    assert light.max() <= 1.0 + 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_stands_on_the_ground_and_carries_paint(kind: str) -> None:
    for seed in range(4):
        mesh = make(kind, seed)
        low, high = mesh.bounds
        assert -1e-6 <= low[2] < 0.1
        assert (high - low).max() < 6.2
        assert mesh.painted.any()
        assert (np.abs(np.linalg.norm(mesh.normals, axis=1) - 1) < 1e-9).mean() > 0.9


def test_meshes_of_two_seeds_differ_and_of_one_do_not() -> None:
    make.cache_clear()
    one = make("van", 3).vertices
    make.cache_clear()
    np.testing.assert_array_equal(one, make("van", 3).vertices)
    assert one.shape != make("van", 4).vertices.shape or not np.allclose(one, make("van", 4).vertices)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="Did you mean sedan"):
        make("sedam", 0)
