"""The track: textures see nothing of the evaluated scenes, scores are those of a composition by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from siegebench.leaderboard import rank
from siegebench.zoo.vehicle_scenes import VehicleScenes

from siegebench import api
from siegebench.config import load_suite
from siegebench.errors import ConfigError
from siegebench.plan import plan
from siegebench.render.maps import Maps
from siegebench.store import Store
from siegebench.tracks.staging import dominant, stage_of, texture_of
from siegebench.types import Camouflage
from siegebench.workspace import Settings, Workspace
from tests import runs

MODEL = {"name": "byobnet_tiny", "recipe": {"epochs": 1, "batch": 8}}
BOARD = {
    "track": "camouflage", "camouflages": [{"name": "active", "steps": 2}], "controls": ["flat", "random_texture"],
    "transfer": [MODEL], "scenes": 4, "ss": 1,
}  # fmt: skip
DATA = {"set": runs.SCENES, "count": 20}


def suite(folder: Path, board: dict[str, object] = BOARD, **changes: object) -> str:
    return str(runs.suite(folder / "s.yaml", board, **{"data": DATA, "models": [MODEL], **changes}))


def test_textures_are_made_on_training_scenes_and_scored_on_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []
    real = VehicleScenes.scenes

    def scenes(self: VehicleScenes, split: str, ids: Sequence[int], ss: int = 2) -> Maps:
        asked.append((split, len(ids)))
        return real(self, split, ids, ss)

    monkeypatch.setattr(VehicleScenes, "scenes", scenes)
    loaded = load_suite(suite(tmp_path))
    settings = Settings(root=str(tmp_path / "store"), threads=1, specs=plan(loaded).specs)
    outcome = api.run(loaded, settings, how="serial")
    assert not outcome.failed, [r.error for r in outcome.results if r.error]
    assert {split for split, n in asked if n == 4} == {"train"}
    assert {n for split, n in asked if split == "test"} == {20}
    rows = {(r.cell.camouflage or {})["name"] + ("*" if r.cell.surrogates else ""): r for r in outcome.results}
    assert set(rows) == {"active", "active*", "flat", "random_texture"}  # controls need no surrogate

    ws = Workspace(settings)
    cell = rows["active"].cell
    victim = ws.victim(cell)
    stage = stage_of(cell, ws, victim, ws.entry(Camouflage, cell.camouflage))
    assert set(stage.maps.ids.tolist()) <= set(ws.splits(cell.data)[0].ids.tolist())
    assert stage.maps.labels.tolist() == [1] * 4
    texture, _, _ = texture_of(cell, ws, victim)  # stored beside the weights
    data = ws.evaluated(cell.data)
    maps = real(ws.dataset(cell.data), "test", data.ids.tolist(), 1)  # type: ignore[arg-type]
    hit = victim(texture.on(maps)).argmax(dim=1) == 1
    row = rows["active"]
    assert row.outcome("seen").tolist() == hit.tolist()
    assert row.outcome("vehicle").tolist() == (data.labels == 1).tolist()
    assert row.metrics["vehicle_acc"]["value"] == pytest.approx(float(hit[data.labels == 1].float().mean()))
    flat = rows["flat"]
    assert flat.outcome("seen").tolist() == flat.outcome("seen_grey").tolist()
    assert flat.metrics.get("missed", {"value": 0.0})["value"] == 0.0
    assert row.counts["learning_backwards"] == 2 * 4
    assert rows["random_texture"].counts["learning_forwards"] == 0
    azimuth = row.whole("azimuth")
    assert azimuth is not None
    assert azimuth.max() < 8

    (board,) = rank.boards(Store(settings.root).rows())
    (line,) = board.lines
    assert line.value("transfer:active from byobnet_tiny") == rows["active*"].value("vehicle_acc")
    assert line.value("vehicle_acc") == min(r.value("vehicle_acc") for n, r in rows.items() if n != "active*")


def test_boards_that_cannot_work_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no scenes on which a texture can be put; use vehicle_scenes"):
        plan(load_suite(suite(tmp_path, data={"set": "digits", "count": 20})))
    with pytest.raises(ConfigError, match="made on the split train; score them on another"):
        plan(load_suite(suite(tmp_path, data={**DATA, "split": "train"})))


def test_dominant_colours_are_those_of_the_background() -> None:
    ids = list(range(0, 6, 2))
    maps = VehicleScenes(train=12, test=12, size=24, meshes=2).scenes("train", ids)
    found = dominant(maps)
    assert found.shape == (16, 3)
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1).expand_as(maps.a).clone()
    red[:, :, :12] = torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1)
    red[maps.vehicle[:, None].expand_as(red) > 0] = 0.5  # what the vehicle shows does not count
    two = Maps.of({**maps.tensors(), "a": red}, maps.ss)
    assert {tuple(c) for c in dominant(two).round(decimals=3).tolist()} == {(1.0, 0.0, 0.0), (0.0, 0.0, 1.0)}


@pytest.mark.slow
def test_attacks_hide_vehicles_better_than_grey_and_random_paint(tmp_path: Path) -> None:
    file = runs.suite(
        tmp_path / "s.yaml",
        {"track": "camouflage", "camouflages": ["active", "dta"], "controls": ["flat", "random_texture"], "ss": 2},
        data={"set": {"name": "vehicle_scenes", "train": 800, "test": 200, "size": 96}, "count": 200},
        models=[{"name": "byobnet_tiny", "recipe": {"epochs": 3, "lr": 0.005, "batch": 32, "augment": "crop_flip"}}],
    )  # fmt: skip
    outcome = api.run(str(file), Settings(root=str(tmp_path / "store")), how="serial")
    by = {(r.cell.camouflage or {})["name"]: r.value("vehicle_acc") or 0.0 for r in outcome.results}
    assert by["active"] <= min(by["flat"], by["random_texture"]) - 0.2
    assert by["dta"] < min(by["flat"], by["random_texture"])
