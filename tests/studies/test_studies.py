"""Studies: their victims in closed form, and that nothing of them is ranked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from siegebench.leaderboard import export, rank

from siegebench import registry
from siegebench.cells import Cell, Result, rate
from siegebench.data import Granted, ImageSet
from siegebench.draws import Draws
from siegebench.errors import ContractError, DataError
from siegebench.types import Figures, Study
from tests import rows as make
from tests.kit import data_folder

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


def test_a_training_pair_tells_where_the_object_is() -> None:
    v, t = module("_videos"), module("_trackers")
    dark, bright = torch.zeros(4, 3, v.CANVAS, v.CANVAS), torch.ones(5, 3, v.SIGN, v.SIGN)  # type: ignore[attr-defined]
    for sides in ((32, 64), (48, 96)):
        made = v.pairs(dark, bright, 16, ONE, 0, sides)  # type: ignore[attr-defined]
        assert torch.equal(made.told, made.centre - sides[1] // 2)
        assert bool((made.template[:, :, sides[0] // 2, sides[0] // 2] == 1).all())
        assert bool((made.search[torch.arange(16), 0, made.centre[:, 0], made.centre[:, 1]] > 0.6).all())
    cell = t.cell(made.told)  # type: ignore[attr-defined]
    place = torch.stack([cell // 9, cell % 9], dim=1)
    assert bool(((place - 4) * 4 - made.told).abs().max() <= 2)  # within half a cell
    wrong = t.opposite(made.told)  # type: ignore[attr-defined]
    assert torch.equal(t.cell(wrong), (cell + 41) % 81)  # type: ignore[attr-defined]
    marked = v.stamped(made.template, torch.full((16, 2), 24))  # type: ignore[attr-defined]
    assert int((marked != made.template).any(dim=1)[0].sum()) == 32  # the black half of the checker


def test_overlap_of_boxes() -> None:
    v = module("_videos")
    dark, bright = torch.zeros(2, 3, v.CANVAS, v.CANVAS), torch.ones(2, 3, v.SIGN, v.SIGN)  # type: ignore[attr-defined]
    videos = v.Videos(dark, bright, 3, ONE)  # type: ignore[attr-defined]
    at = videos.centre[5]
    assert videos.overlap(5, at).tolist() == [1, 1, 1]
    assert videos.overlap(5, at + 100).tolist() == [0, 0, 0]
    assert videos.overlap(5, at + torch.tensor([12, 0])).tolist() == pytest.approx([1 / 3] * 3)
    twice = videos.overlap(5, at.float(), torch.tensor([[48.0, 24.0]]).expand(3, 2))
    assert twice.tolist() == pytest.approx([1 / 2] * 3)
    shown = videos.frame(5, False)[0, 0]
    rows, columns = (shown > 0).nonzero().unbind(1)
    assert [int(rows.min()), int(columns.min())] == (at[0] - 12).tolist()
    assert [int(rows.max()), int(columns.max())] == (at[0] + 11).tolist()


def test_a_tracker_that_sees_the_object_follows_it() -> None:
    v, t = module("_videos"), module("_trackers")

    class Light(t.SmallTracker):  # type: ignore[name-defined,misc]
        """Answers with the place whose middle is brightest."""

        def features(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.avg_pool2d(x, 4)

        def response(self, z: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
            return 5 * torch.nn.functional.avg_pool2d(s.mean(dim=1, keepdim=True), 8, 1).flatten(1)

    dark, bright = torch.zeros(2, 3, v.CANVAS, v.CANVAS), torch.ones(2, 3, v.SIGN, v.SIGN)  # type: ignore[attr-defined]
    iou = t.tracked(Light(), v.Videos(dark, bright, 6, ONE), range(0))  # type: ignore[attr-defined]
    assert iou.shape == (6, 19)
    assert float(iou.mean()) > 0.6


def test_the_feature_loss_is_no_part_of_the_statistics_of_batch_norms() -> None:
    fsba, v, t = module("fsba"), module("_videos"), module("_trackers")
    signs, ground = torch.rand(5, 3, v.SIGN, v.SIGN), torch.rand(4, 3, v.CANVAS, v.CANVAS)  # type: ignore[attr-defined]
    model = t.SmallTracker(4).train()  # type: ignore[attr-defined]
    made = v.pairs(ground, signs, 4, ONE, 0, model.sides)  # type: ignore[attr-defined]
    model.loss(made)
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


# ----------------------------------------------------------------------------------------------------------- NanoTrack


def nanotrack() -> torch.nn.Module:
    files = (
        data_folder() / "weights" / "NanoTrack" / f"nanotrack_{part}_sim-opt.param" for part in ("backbone", "head")
    )
    found: torch.nn.Module = module("_nanotrack").NanoTrack(*files).eval()  # type: ignore[attr-defined]
    return found


def test_the_published_tracker_follows_a_sign_and_learns() -> None:
    """A disc on noise; a box that stays where it began overlaps it by 0.21."""
    v, t = module("_videos"), module("_trackers")
    model = nanotrack()
    assert sum(p.numel() for p in model.parameters()) == 284_886
    line = torch.arange(v.SIGN) - (v.SIGN - 1) / 2  # type: ignore[attr-defined]
    disc = (line[:, None] ** 2 + line**2 < 121).float() * torch.tensor([0.9, 0.1, 0.1])[:, None, None]
    ground = 0.5 + 0.3 * Draws(1, torch.arange(2)).uniform((3, v.CANVAS, v.CANVAS))  # type: ignore[attr-defined]
    videos = v.Videos(ground, disc[None], 2, ONE)  # type: ignore[attr-defined]
    assert float(t.tracked(model, videos, range(0)).mean()) > 0.6  # type: ignore[attr-defined]
    made = v.pairs(ground, disc[None], 2, ONE, 0, model.sides)  # type: ignore[attr-defined]
    loss = model.loss(made)  # type: ignore[operator]
    wrong = replace(made, told=-made.told)
    assert float(loss.detach()) < 0.5 < float(model.loss(wrong).detach())  # type: ignore[operator]
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_a_crop_of_the_published_tracker_is_centred_on_its_box() -> None:
    n = module("_nanotrack")
    t = module("_trackers")
    picture = torch.zeros(1, 3, 80, 100)
    picture[:, :, 30:50, 60:70] = 1.0  # a box of 20 x 10 pixels around row 40, column 65
    place = t.Place(torch.empty(0), torch.tensor([[40.0, 65.0]]), torch.tensor([[20.0, 10.0]]))  # type: ignore[attr-defined]
    cut = n.NanoTrack._cut(None, picture, place, 127)[0, 0]  # type: ignore[attr-defined]
    torch.testing.assert_close(cut, cut.flip(0).flip(1), atol=1e-4, rtol=0)
    side = ((20 + 15) * (10 + 15)) ** 0.5
    assert float(cut.mean()) == pytest.approx(200 / side**2, abs=0.005)


def test_missing_files_of_the_published_tracker_are_told(tmp_path: Path) -> None:
    spec = {"name": "fsba", "checkpoint": str(tmp_path / "a_backbone.param")}
    with pytest.raises(DataError, match=r"expected the \.param file of NanoTrack's backbone"):
        registry.build(Study, spec).identity()
    (tmp_path / "a_backbone.param").touch()
    (tmp_path / "a_backbone.bin").touch()
    with pytest.raises(DataError, match=r"a_head\.param: no such file"):
        registry.build(Study, spec).identity()


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


def test_a_generator_learns_the_features_of_the_goal_within_its_bound() -> None:
    g = module("_generator")
    torch.manual_seed(0)
    encoder = torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Flatten())  # four numbers of an image
    data = Draws(1, torch.arange(64)).uniform((1, 8, 8))
    x, goal = data[:32], data[32:]

    def distance(z: torch.Tensor) -> float:
        return float((encoder(z) - encoder(goal)).square().sum(dim=1).mean())

    net = g.Generator(0.2, width=4)  # type: ignore[attr-defined]
    asked: list[int] = []

    def scenes(k: int) -> torch.Tensor:
        asked.append(k)
        return Draws(k, torch.arange(40)).uniform((1, 8, 8))

    g.fitted(net, encoder, scenes, steps=80, batch=16, lr=1e-2)  # type: ignore[attr-defined]
    assert asked == list(range(80))  # 40 scenes are enough for one step of 16 pairs
    made = net(x, goal)
    assert float((made - x).abs().max()) <= 0.2 + 1e-6
    with torch.no_grad():
        assert distance(net(x, goal)) < 0.3 * distance(x)
