"""Textures on scenes: what is linear in them, what repeats, and the gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from siegebench.errors import ConfigError
from siegebench.render.compose import compose, encoded, linear, radiance, texels
from siegebench.render.maps import Maps
from siegebench.render.raster import rasterise
from siegebench.render.scenes import SPLITS, draw, procedural, render
from siegebench.render.vehicles import VEHICLES


def rendered(count: int = 2, size: int = 32, ss: int = 2) -> Maps:
    scenes = draw("train", range(0, 2 * count, 2))
    return Maps.join([
        render(s.mesh, s.pose, s.sun, procedural(s.id, size, size), ss=ss, id=s.id, label=1) for s in scenes
    ])  # fmt: skip


@pytest.fixture(scope="module")
def maps() -> Maps:
    return rendered()


def texture(seed: int = 0, h: int = 5, w: int = 7, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(3, h, w, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_srgb_there_and_back() -> None:
    x = torch.linspace(0, 1, 500, dtype=torch.float64)
    torch.testing.assert_close(encoded(linear(x)), x, atol=1e-6, rtol=0)
    assert float(linear(torch.tensor(0.5))) == pytest.approx(0.21404, abs=1e-5)
    assert float(encoded(torch.tensor(1.7))) == pytest.approx(1.0)
    dark = torch.zeros(3, requires_grad=True)
    encoded(linear(dark)).sum().backward()
    torch.testing.assert_close(dark.grad, torch.ones(3))  # finite at black, and the inverse of one another


def test_texels_are_exact_at_their_centres_and_wrap_between_the_last_and_the_first() -> None:
    t = texture()
    x, y = torch.meshgrid(torch.arange(7.0), torch.arange(5.0), indexing="xy")
    at = torch.stack([(x.flatten() + 0.5) / 7, (y.flatten() + 0.5) / 5], dim=1)[None]
    torch.testing.assert_close(texels(t[None], at)[0].T.reshape(3, 5, 7), t)
    seam = texels(t[None], torch.tensor([[[0.0, 0.5 / 5]]]))
    torch.testing.assert_close(seam[0, 0], (t[:, 0, 0] + t[:, 0, -1]) / 2)


def test_textures_repeat_in_all_directions() -> None:
    at = torch.rand(2, 40, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    both = torch.stack([texture(0, dtype=torch.float64), texture(1, dtype=torch.float64)])
    torch.testing.assert_close(texels(both, at), texels(both, at + torch.tensor([3.0, -2.0])))
    tiled = texture(0).repeat(1, 2, 3)[None]
    torch.testing.assert_close(
        texels(tiled, at[:1].float() / torch.tensor([3.0, 2.0])), texels(texture(0)[None], at[:1].float())
    )


def test_look_up_agrees_with_grid_sample_on_a_padded_texture() -> None:
    t, at = texture(h=6, w=4)[None], torch.rand(1, 50, 2, generator=torch.Generator().manual_seed(2))
    padded = torch.nn.functional.pad(t, (1, 1, 1, 1), mode="circular")
    size = torch.tensor([4.0, 6.0])
    grid = (at * size + 1) / (size + 2) * 2 - 1
    expected = torch.nn.functional.grid_sample(padded, grid[:, None], align_corners=False)
    torch.testing.assert_close(texels(t, at)[0].T, expected[0, :, 0], atol=1e-5, rtol=1e-5)


def test_light_is_affine_in_the_albedo(maps: Maps) -> None:
    one, two = texture(0), texture(1)
    nothing = radiance(maps, torch.zeros(3, 5, 7), 2.0)
    torch.testing.assert_close(nothing, maps.a)
    mixed = radiance(maps, 0.3 * one + 0.6 * two, 2.0)
    parts = [radiance(maps, t, 2.0) - nothing for t in (one, two)]
    torch.testing.assert_close(mixed, nothing + 0.3 * parts[0] + 0.6 * parts[1], atol=1e-6, rtol=1e-5)


def test_white_paint_adds_m_and_nothing_where_no_paint_is(maps: Maps) -> None:
    m, _ = maps.dense()
    pooled = torch.nn.functional.avg_pool2d(m, maps.ss)
    torch.testing.assert_close(radiance(maps, torch.ones(3, 1, 1), 2.0), maps.a + pooled, atol=1e-6, rtol=1e-5)
    one, two = compose(maps, texture(0), 2.0), compose(maps, texture(1), 2.0)
    changed = (one != two).any(dim=1)
    assert not (changed & (maps.paint == 0)).any()
    assert changed[maps.paint > 0.5].float().mean() > 0.95


def test_gradients_agree_with_finite_differences() -> None:
    small = rendered(1, size=12, ss=2)
    t = texture(3, 3, 4, torch.float64).requires_grad_()
    shift = torch.tensor([[0.13, 0.27]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda t: compose(small, t, 1.7, shift, torch.tensor([1.1])), (t,), atol=1e-7)


def test_a_flat_texture_is_the_same_with_any_shift_scale_and_projection(maps: Maps) -> None:
    flat = torch.tensor([0.2, 0.6, 0.4]).view(3, 1, 1).expand(3, 4, 4)
    plain = compose(maps, flat, 2.0)
    shift, scale = torch.tensor([[0.3, 0.1], [0.9, 0.5]]), torch.tensor([0.7, 1.2])
    torch.testing.assert_close(compose(maps, flat, 1.3, shift, scale), plain)
    torch.testing.assert_close(compose(maps, flat, 1.3, projection="screen"), plain)


def test_shift_and_scale_move_the_texture_of_each_image(maps: Maps) -> None:
    t = texture()
    whole = compose(maps, t, 2.0, torch.tensor([[1.0, -1.0]]))
    torch.testing.assert_close(whole, compose(maps, t, 2.0), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(compose(maps, t, 2.0, scale=torch.tensor([1.5])), compose(maps, t, 3.0))
    moved = compose(maps, t, 2.0, torch.tensor([[0.0, 0.0], [0.5, 0.0]]))
    torch.testing.assert_close(moved[0], whole[0], atol=1e-4, rtol=1e-4)
    assert (moved[1] - whole[1]).abs().max() > 0.05


def test_each_image_may_have_a_texture_of_its_own(maps: Maps) -> None:
    both = torch.stack([texture(0), texture(1)])
    for i in range(2):
        torch.testing.assert_close(compose(maps, both, 2.0)[i], compose(maps[i : i + 1], both[i], 2.0)[0])


def test_a_selection_of_scenes_is_theirs(maps: Maps) -> None:
    back = maps[torch.tensor([1, 0])]
    assert back.ids.tolist() == [2, 0]
    torch.testing.assert_close(compose(back, texture(), 2.0), compose(maps, texture(), 2.0).flip(0))
    again = Maps.of(maps.tensors(), maps.ss)
    torch.testing.assert_close(again.a, maps.a)


def test_screen_coordinates_are_metres_from_the_middle(maps: Maps) -> None:
    width = maps.size[1] * maps.ss
    x = maps.place % width
    step = maps.screen[0, x[0] == x[0, 0]][:, 0]
    assert step.max() - step.min() < 1e-5  # one column
    left, right = maps.screen[0, x[0].argmin(), 0], maps.screen[0, x[0].argmax(), 0]
    assert 1.5 < float(right - left) < 6.5  # a car


def test_unfit_textures_and_periods_are_refused(maps: Maps) -> None:
    with pytest.raises(ConfigError, match=r"found \(4, 5, 7\); expected \[3, h, w\]"):
        compose(maps, torch.rand(4, 5, 7), 2.0)
    with pytest.raises(ConfigError, match="found 0; expected metres"):
        compose(maps, texture(), 0)


# -------------------------------------------------------------------------------------------------------------- scenes


def test_the_splits_share_no_vehicle_and_no_direction() -> None:
    train, test = (draw(split, range(400)) for split in SPLITS)
    assert not {s.vehicle for s in train} & {s.vehicle for s in test}
    assert {int(s.pose.azimuth // 7.5) % 2 for s in train} == {0}
    assert {int(s.pose.azimuth // 7.5) % 2 for s in test} == {1}
    assert len({s.vehicle for s in test if s.kind == "sedan"}) > 15


def test_long_meshes_are_seen_from_farther_away() -> None:
    for scene in draw("test", range(0, 24, 2)):
        near = replace(scene.pose, distance=1.0, across=0.0, down=0.0).fitting(scene.mesh)
        seen = rasterise(scene.mesh, near.camera(scene.mesh.centre, 24, 24)).face >= 0
        seen[1:-1, 1:-1] = False
        assert not seen.any()  # nothing at the border
        assert scene.pose.fitting(scene.mesh).distance >= scene.pose.distance


def test_scenes_depend_on_their_id_alone() -> None:
    assert draw("test", [7, 3])[1] == draw("test", range(10))[3]
    assert draw("test", [3], seed=1) != draw("test", [3])


def test_even_ids_are_vehicles() -> None:
    assert all((s.kind in VEHICLES) == (s.id % 2 == 0) for s in draw("train", range(40)))


def test_maps_and_images_are_the_same_again(maps: Maps) -> None:
    again = rendered()
    for name, value in maps.tensors().items():
        assert torch.equal(value, getattr(again, name)), name


def test_a_finer_rendering_is_nearly_the_same_image() -> None:
    coarse, fine = compose(rendered(2, 32, 2), texture(), 4.0), compose(rendered(2, 32, 6), texture(), 4.0)
    assert (coarse - fine).abs().mean() < 0.01


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ConfigError, match="train and test, found 'val'"):
        draw("val", [0])
