"""The tiny detector: its loss in closed form, its training images, and training through the harness."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from siegebench.zoo import tiny_detector
from siegebench.zoo.tiny_detector import STRIDE, TinyDetector, TinyDetectorModel, loss
from torch import Tensor

from siegebench import api, registry
from siegebench.draws import Draws
from siegebench.errors import ConfigError, ModelError, NotApplicable
from siegebench.object_detector import average_precision, kept, matched
from siegebench.render.compose import compose
from siegebench.train import Recipe
from siegebench.types import DataSource, ModelSource, ObjectDetectorSource, SceneSource
from siegebench.workspace import Settings
from tests import runs

SIDE = 48
RECIPE = {"epochs": 1, "batch": 4, "lr": 0.01, "augment": "none"}


def source(**given: Any) -> TinyDetector:
    entry = registry.build(ObjectDetectorSource, {"name": "tiny_detector", **given})
    assert isinstance(entry, TinyDetector)
    return entry


def scenes_spec(**given: Any) -> dict[str, Any]:
    return {"name": "vehicle_scenes", "train": 12, "test": 6, "size": SIDE, "meshes": 3, **given}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def scenes(cache: None) -> SceneSource:
    found = registry.build(DataSource, scenes_spec())
    assert isinstance(found, SceneSource)
    return found


# ---------------------------------------------------------------------------------------------------------- the loss


def answers(box: Tensor, positive: Tensor, sure: float = 20.0) -> Tensor:
    """Objectness of the cells of a 48 x 48 picture, `sure` where it is positive, with the same box in all cells."""
    objects = torch.where(positive, sure, -sure)
    return torch.cat([objects[..., None], box.expand(*objects.shape, 4)], dim=2)


def test_the_right_answer_costs_nothing() -> None:
    truth = torch.tensor([[8.0, 4.0, 40.0, 36.0], [0.0, 0.0, 0.0, 0.0]])  # the middle is (24, 20)
    positive = torch.zeros(2, 6, 6, dtype=torch.bool)
    positive[0, 1:4, 2:4] = True  # middles 12, 20, 28 down are 8 away at most, which is not less than 8
    positive[0, [1, 3]] = False
    mine = positive.flatten(1)
    right = loss(answers(truth[0], mine), truth, (SIDE, SIDE))
    assert right.item() == pytest.approx(0, abs=1e-6)
    assert loss(answers(truth[0], ~mine), truth, (SIDE, SIDE)) > 100  # sure of the opposite


def test_boxes_cost_their_distance_in_giou() -> None:
    truth = torch.tensor([[8.0, 4.0, 40.0, 36.0]])
    mine = torch.zeros(1, 6, 6, dtype=torch.bool)
    mine[0, 2, 2:4] = True
    half = torch.tensor([8.0, 4.0, 24.0, 36.0])  # IoU 1/2, and the hull is the true box
    assert loss(answers(half, mine.flatten(1)), truth, (SIDE, SIDE)).item() == pytest.approx(0.5, abs=1e-5)


def test_images_without_vehicles_teach_objectness_only() -> None:
    nothing, none = torch.zeros(2, 4), torch.zeros(2, 36, dtype=torch.bool)
    assert loss(answers(torch.rand(4), none), nothing, (SIDE, SIDE)).item() == pytest.approx(0, abs=1e-6)
    one = none.clone()
    one[0, 7] = True
    assert loss(answers(torch.rand(4), one), nothing, (SIDE, SIDE)).item() > 1


def test_small_boxes_have_a_cell() -> None:
    small = torch.tensor([[17.0, 17.0, 23.0, 23.0]])  # around the middle (20, 20) of a cell
    mine = torch.zeros(1, 6, 6, dtype=torch.bool)
    mine[0, 2, 2] = True
    assert loss(answers(small[0], mine.flatten(1)), small, (SIDE, SIDE)).item() == pytest.approx(0, abs=1e-6)


def test_boxes_lie_around_the_middles_of_cells() -> None:
    model = TinyDetectorModel(2).eval()
    with torch.no_grad():
        model.head[-1].weight.zero_()
        model.head[-1].bias.copy_(torch.tensor([1.0, 50.0, -50.0, 50.0, 2.0]))
        objects, boxes = model.raw(torch.rand(1, 3, 40, 24))
    assert boxes.shape == (1, 5 * 3, 4)
    down = torch.nn.functional.softplus(torch.tensor(2.0)).item() * STRIDE
    expected = torch.tensor([20 - 50.0 * STRIDE, 12.0, 20 + 50.0 * STRIDE, 12 + down])
    torch.testing.assert_close(boxes[0, 5], expected)  # the middle of the second row and third column
    assert objects.unique().tolist() == [1.0]


# --------------------------------------------------------------------------------------------------------- the images


def test_training_images_have_boxes_of_vehicles_only(scenes: SceneSource) -> None:
    data, boxes = source(paints=2, patterned=1.0).images(scenes, range(6), seed=3)
    maps = scenes.scenes("train", range(6))
    assert len(data) == len(boxes) == 12
    assert data.labels.tolist() == [1, 0] * 6
    assert boxes[data.labels == 0].abs().sum() == 0
    plain, mirrored = boxes[:6], boxes[6:]
    mine = maps.labels == 1
    assert torch.equal(plain[mine], maps.box[mine])
    assert torch.equal(mirrored[mine][:, [2, 0]], SIDE - plain[mine][:, [0, 2]])
    texture = Draws(3, maps.ids * 2 + 1).uniform((3, 16, 16), purpose="pattern")
    x = (compose(maps, texture, tiny_detector.PERIOD).flip(3) * 255).round().to(torch.uint8)
    assert torch.equal(data.images[6:], x)


def test_training_finds_the_vehicles_of_its_own_images(scenes: SceneSource) -> None:
    ours = source(width=8, patterned=0.0, recipe={**RECIPE, "batch": 8, "epochs": 50})
    model = ours.detector(size=SIDE).fresh(0)
    data, boxes = ours.images(scenes, range(8), seed=0)
    ours.learn(model, scenes, range(8), 0)
    assert not model.training
    with torch.no_grad():
        found = kept(model.find(data.pixels()))
    mine = data.labels == 1
    assert average_precision(found, boxes) > 0.5
    assert matched(found, boxes)[mine].mean() > found.best[~mine].mean() + 0.3


def test_it_is_only_trained_on_scenes(scenes: SceneSource) -> None:
    digits = registry.build(DataSource, "digits")
    model = source().detector(size=SIDE)
    with pytest.raises(NotApplicable, match="tiny_detector is trained on boxes, and digits train has none"):
        source().fit(model, digits, digits.load("train"), 0)


# ------------------------------------------------------------------------------------------------ through the harness


def suite(folder: Path, **given: Any) -> Path:
    return runs.suite(
        folder / "suite.yaml", runs.board(measures=[]), data={"set": scenes_spec(**given), "count": 6},
        models=[{"name": "tiny_detector", "width": 4, "recipe": RECIPE}],
    )  # fmt: skip


def test_it_is_a_model_of_a_board_and_trained_once(
    cache: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(root=str(tmp_path / "store"), device="cpu", threads=1)
    first = api.run(str(suite(tmp_path)), settings)
    assert [row.error for row in first.results if row.status != "ok"] == []
    (beside,) = (json.loads(path.read_text()) for path in (tmp_path / "store" / "artifacts").glob("*.json"))
    assert (beside["kind"], beside["model"]["name"], beside["seed"]) == ("clean", "tiny_detector", 0)
    assert beside["data"] == first.results[0].cell.data["train_digest"]
    assert beside["sources"].keys() == {"model"}
    monkeypatch.setattr(TinyDetector, "learn", lambda *given: pytest.fail("trained again"))
    again = api.run(str(suite(tmp_path)), Settings(root=str(tmp_path / "store"), device="cpu", threads=1, again="9"))
    assert [row.weights for row in again.results] == [row.weights for row in first.results]


def test_other_classes_are_refused_before_anything_runs(cache: None, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="answers with the classes other and vehicle, the data has 4 classes"):
        api.run(str(suite(tmp_path, task="kind")), Settings(root=str(tmp_path / "store"), device="cpu", threads=1))


def test_it_is_found_as_a_model_and_listed_as_what_it_is() -> None:
    assert isinstance(registry.build(ModelSource, "tiny_detector"), TinyDetector)
    assert "tiny_detector" in registry.names("object_detector")
    assert "tiny_detector" not in registry.names("model")
    assert registry.find("model", "tiny_detector")[0].card.kind == "object_detector"
    with pytest.raises(ConfigError, match="Did you mean tiny_detector"):
        registry.build(ModelSource, "tiny_detectr")
    with pytest.raises(ConfigError, match="unknown object_detector 'small_vgg'"):
        registry.build(ObjectDetectorSource, "small_vgg")


def test_the_recipe_is_part_of_the_description() -> None:
    one, two = (registry.describe("model", {"name": "tiny_detector", "recipe": {"epochs": k}}) for k in (3, 4))
    assert one != two
    assert Recipe(**one["recipe"]) == Recipe(epochs=3)
