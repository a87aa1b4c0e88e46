"""Rendered scenes as a data set: images and maps of one id show the same, and the splits share nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from siegebench import registry
from siegebench.data import ImageSet
from siegebench.errors import ConfigError, DataError
from siegebench.render.compose import compose
from siegebench.render.vehicles import make
from siegebench.types import DataSource, SceneSource

zoo: Any = pytest.importorskip("siegebench.zoo.vehicle_scenes")
PHOTOS = torch.arange(10, 90, 10, dtype=torch.uint8)[:, None, None, None].expand(8, 3, 40, 50).contiguous()


def source(**parameters: Any) -> Any:
    spec = {"name": "vehicle_scenes", "train": 8, "test": 6, "size": 32, "meshes": 3, **parameters}
    found = registry.build(DataSource, spec)
    assert isinstance(found, SceneSource)
    return found


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of its own, on disk and in memory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    zoo._maps.clear()
    return tmp_path


@pytest.fixture
def photographs(tmp_path: Path) -> dict[str, Any]:
    """Grey images 10, 20, ... 80, labelled 0 and 1 in turn."""
    np.savez(tmp_path / "photos.npz", images=PHOTOS.permute(0, 2, 3, 1).numpy(), labels=np.arange(8) % 2)
    return {"backgrounds": {"name": "arrays", "file": str(tmp_path / "photos.npz")}, "background_split": "test"}


def test_an_image_is_its_scene_with_the_paint_of_the_source() -> None:
    one = source()
    data = one.load("test")
    ids = data.ids[[4, 1]]
    x = compose(one.scenes("test", ids.tolist()), one.paint("test", ids), zoo.PERIOD)
    assert torch.equal((x * 255).round().to(torch.uint8), data.images[[4, 1]])
    assert one.scenes("test", ids.tolist()).labels.tolist() == data.labels[[4, 1]].tolist()


def test_images_are_rendered_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = source().load("train")
    assert list((cache / "siegebench" / "rendered").glob("*.safetensors"))
    monkeypatch.setattr(zoo, "render", lambda *a, **k: pytest.fail("rendered again"))
    assert source().load("train").digest == first.digest


def test_images_depend_on_their_id_and_not_on_the_number_of_images() -> None:
    assert torch.equal(source(test=4).load("test").images, source().load("test").images[:4])


def test_labels_of_both_tasks() -> None:
    binary, kinds = source().load("train"), source(task="kind").load("train")
    assert binary.labels.tolist() == [1, 0] * 4
    assert kinds.labels.tolist() == [1, 0, 2, 0, 3, 0, 1, 0]
    assert torch.equal(binary.images, kinds.images)
    assert source().vehicles() == (1,)
    assert source(task="kind").vehicles() == (1, 2, 3)


def test_the_splits_divide_the_photographs(photographs: dict[str, Any]) -> None:
    one = source(**photographs)
    train, test = (set(one._photographs(split)[:, 0, 0, 0].tolist()) for split in ("train", "test"))
    assert train | test == set(range(10, 90, 10))
    assert not train & test
    few = source(**photographs, avoid=(1,))
    used = [int(v) for split in ("train", "test") for v in few._photographs(split)[:, 0, 0, 0]]
    assert sorted(used) == [10, 30, 50, 70]
    # what is far from the vehicle is the photograph
    corner = few.load("test").images[:, :, 0, 0]
    assert set(corner.flatten().tolist()) <= {10, 30, 50, 70}


def test_photographs_are_cut_to_squares_and_resized() -> None:
    wide = torch.zeros(1, 3, 4, 8, dtype=torch.uint8)
    wide[..., 2:6] = 200
    assert torch.equal(zoo.squared(wide, 2), torch.full((1, 3, 2, 2), 200, dtype=torch.uint8))


def test_some_images_have_patterns_when_asked() -> None:
    plain, some = source(), source(patterned=1.0)
    ids = torch.arange(6)
    assert plain.paint("test", ids).flatten(2).std(dim=2).max() < 1e-6
    assert some.paint("test", ids).flatten(2).std(dim=2).min() > 0.1
    assert not torch.equal(plain.load("test").images, some.load("test").images)


def test_maps_are_kept_for_the_next_cell() -> None:
    one = source()
    assert one.scenes("train", [0, 2]) is source().scenes("train", [0, 2])
    assert one.scenes("train", [0, 2], ss=3).ss == 3


@pytest.mark.parametrize("ids", [[], [0, 8], [-1]])
def test_scenes_that_do_not_exist_are_refused(ids: list[int]) -> None:
    with pytest.raises(DataError, match="it has the scenes 0 to 7"):
        source().scenes("train", ids)


def test_too_few_photographs_are_refused(photographs: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="0 photographs with 3 channels"):
        source(**photographs, avoid=(0, 1)).load("test")


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(DataError, match="has the splits train and test, not 'val'"):
        source().load("val")


def test_a_set_is_an_image_set() -> None:
    data = source().load("test")
    assert isinstance(data, ImageSet)
    assert data.classes == ("other", "vehicle")


def test_other_renderers_and_files_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def traced(mesh: Any, pose: Any, sun: Any, background: Any, *, spp: int, **about: Any) -> Any:
        assert spp == 25
        return zoo.render(mesh, pose, sun, background, **about)

    monkeypatch.setattr(zoo.mitsuba_maps, "render", traced)
    monkeypatch.setattr(zoo.mitsuba_maps, "version", lambda: "1")
    one = source(renderer="mitsuba", paths=100)
    assert one._key != source()._key
    assert len(one.scenes("test", [0, 1], ss=2)) == 2


def test_your_own_vehicles_are_in_both_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.obj").write_text("v 0 0 0\n")
    monkeypatch.setenv("SIEGEBENCH_DATA", str(tmp_path))
    monkeypatch.setattr(zoo, "_read", lambda file, parts, length: make("hut", 5))
    one = source(files=("mine.obj",), parts=("body",))
    assert one.identity()["sha256"]
    assert "files" not in one.parameters()
    for split in ("train", "test"):
        plan = one._plan(split, range(4))
        assert [one._mesh(s) is make("hut", 5) for s in plan] == [True, False, True, False]
    with pytest.raises(DataError, match=r"mesh other.obj: there is no such file"):
        source(files=("other.obj",)).load("test")
    with pytest.raises(ConfigError, match="give `task: vehicle`"):
        source(files=("mine.obj",), task="kind")


def test_other_code_takes_nothing_from_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def key() -> str:
        return str(registry.build("dataset", {"name": "vehicle_scenes", "train": 4, "test": 2})._key)  # type: ignore[attr-defined]

    before = key()
    assert key() == before
    monkeypatch.setattr("siegebench.zoo.vehicle_scenes._code", lambda: "other")
    assert key() != before
