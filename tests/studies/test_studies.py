"""Studies: their victims in closed form, and that nothing of them is ranked."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from siegebench.leaderboard import export, rank

from siegebench import registry
from siegebench.cells import Cell, Result, rate
from siegebench.data import Granted, ImageSet
from siegebench.draws import Draws
from siegebench.errors import ContractError
from siegebench.types import Figures, Study
from tests import rows as make

ONE = Draws(0, torch.zeros(1, dtype=torch.long))


def module(name: str) -> object:
    import importlib

    return importlib.import_module(f"siegebench.studies.{name}")


def row(name: str, seed: int = 0, **figures: dict[str, float]) -> Result:
    study = make.named(name)
    cell = Cell(track="study", data=make.DATA, model=make.named("own"), study=study, seed=seed)
    return make.checked(Result(cell=cell, metrics=figures))


def test_the_numbers_of_a_study_enter_no_ranking() -> None:
    found = [row("fsba", seed, iou_baseline={"value": 0.5 + seed / 10}, hits=rate(3, 4)) for seed in (0, 1)]
    others = [make.attacked("pgd", 100), make.attacked("autoattack", 90)]
    boards = rank.boards([*found, *others])
    (mine,) = [b for b in boards if b.track == "study"]
    assert mine.ranked == ()
    assert mine.lines[0].value("iou_baseline") == pytest.approx(0.55)
    assert "a study is shown, not ranked" in mine.lines[0].reasons
    assert [b for b in boards if b.track != "study"] == list(rank.boards(others))
    assert "iou baseline" in export.as_markdown(boards)


@dataclass(frozen=True, kw_only=True)
class Told(Study):
    """Returns what it is given. Nothing is random.

    Attributes:
        figures: what it returns.
    """

    figures: tuple[tuple[str, float | tuple[int, int]], ...] = ()

    def run(self, images: ImageSet, data: Granted, draws: Draws) -> Figures:
        return dict(self.figures)


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        ((("a", 1.0),), "returns no baseline"),
        ((("Not snake", 1.0), ("baseline", 1.0)), "expected snake_case"),
        ((("baseline", float("nan")),), "baseline is nan"),
        ((("baseline", (5, 4)),), "baseline is 5 of 4"),
    ],
)
def test_a_study_keeps_its_contract(figures: tuple[tuple[str, float]], message: str) -> None:
    images = ImageSet(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), torch.tensor([0]), torch.tensor([0]), 2, "toy")
    with pytest.raises(ContractError, match=message):
        Told(figures=figures)(images, Granted("told", ()), ONE)


def test_the_cell_of_a_training_pair_is_where_the_object_is() -> None:
    v = module("_videos")
    dark, bright = torch.zeros(4, 3, v.CANVAS, v.CANVAS), torch.ones(5, 3, v.SIGN, v.SIGN)  # type: ignore[attr-defined]
    made = v.pairs(dark, bright, 16, ONE, 0)  # type: ignore[attr-defined]
    place = torch.stack([made.cell // 9, made.cell % 9], dim=1)
    assert bool(((place - 4) * 4 - (made.centre - 32)).abs().max() <= 2)  # within half a cell
    assert bool((made.template[:, :, 16, 16] == 1).all())
    assert bool((made.search[torch.arange(16), 0, made.centre[:, 0], made.centre[:, 1]] > 0.6).all())
    marked = v.stamped(made.template, torch.full((16, 2), 16))  # type: ignore[attr-defined]
    assert int((marked != made.template).any(dim=1)[0].sum()) == 32  # the black half of the checker


def test_a_tracker_that_sees_the_object_follows_it() -> None:
    v = module("_videos")

    class Light(torch.nn.Module):
        """Answers with the place whose middle is brightest."""

        def features(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.avg_pool2d(x, 4)

        def response(self, z: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
            return 5 * torch.nn.functional.avg_pool2d(s.mean(dim=1, keepdim=True), 8, 1).flatten(1)

    dark, bright = torch.zeros(2, 3, v.CANVAS, v.CANVAS), torch.ones(2, 3, v.SIGN, v.SIGN)  # type: ignore[attr-defined]
    iou = v.tracked(Light(), dark, bright, 6, ONE, range(0))  # type: ignore[attr-defined]
    assert iou.shape == (6, 19)
    assert float(iou.mean()) > 0.6


def test_the_feature_loss_is_no_part_of_the_statistics_of_batch_norms() -> None:
    fsba, v = module("fsba"), module("_videos")
    signs, ground = torch.rand(5, 3, v.SIGN, v.SIGN), torch.rand(4, 3, v.CANVAS, v.CANVAS)  # type: ignore[attr-defined]
    made = v.pairs(ground, signs, 4, ONE, 0)  # type: ignore[attr-defined]
    model = v.Tracker(4).train()  # type: ignore[attr-defined]
    model(made.template, made.search)
    before = {name: value.clone() for name, value in model.named_buffers()}
    loss = fsba._feature_loss(model, made, 2)  # type: ignore[attr-defined]
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert all(m.training for m in model.modules())
    loss.backward()
    assert -4 < float(loss.detach()) < 0
    weight = model.net[0].weight
    assert float(weight.grad.abs().sum()) > 0
    with torch.no_grad():
        weight -= 1e-3 * weight.grad
    assert float(fsba._feature_loss(model, made, 2)) < float(loss.detach())  # type: ignore[attr-defined]


def test_captions_say_what_the_scene_shows() -> None:
    m = module("controlled_caption")
    rows = m.caption(torch.tensor([5, 0]), torch.tensor([2, 9]), torch.tensor([0, 3]))  # type: ignore[attr-defined]
    said = [[m.WORDS[w] for w in row] for row in rows.tolist()]  # type: ignore[attr-defined]
    assert said == [
        ["a", "five", "left", "of", "a", "two", "<end>"],
        ["a", "zero", "below", "a", "nine", "<end>", "<end>"],
    ]
    digits = registry.build("dataset", "digits").load("test")  # type: ignore[attr-defined]
    x, words = m.scenes(digits, 8, ONE)  # type: ignore[attr-defined]
    assert x.shape == (8, 1, 40, 40)
    assert words.shape == (8, 7)
    assert float(x.amax()) <= 0.95
    left = x[words[:, 2] == m.WORDS.index("left")]  # type: ignore[attr-defined]
    assert all(float(part.mean()) > 0.1 for row in left for part in (row[..., :20], row[..., 20:]))
