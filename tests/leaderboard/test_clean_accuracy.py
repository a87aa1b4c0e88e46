"""Clean accuracy on the boards: it decides between equals, a large loss is flagged. What is said of controls."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console
from siegebench.leaderboard import export, page, rank, tables

from siegebench.cells import Cell, Result, pack, rate
from tests import rows as make
from tests.rows import attacked, flag

from .boards import line, only, scaled


def names(board: Any) -> list[str]:
    return [x.names["model"] for x in board.ranked]


def test_equal_robust_accuracy_is_decided_by_clean_accuracy() -> None:
    board = only([attacked("autoattack", 50, model=m, clean=c) for m, c in (("a", 120), ("b", 180), ("c", 150))])
    assert names(board) == ["b", "c", "a"]
    assert {x.rank for x in board.ranked} == {(1, 3)}


def test_entries_that_cannot_be_told_apart_are_ordered_by_clean_accuracy() -> None:
    """51 and 50 of 200 are no difference; 20 is one."""
    entries = (("low", 51, 120), ("high", 50, 180), ("worse", 20, 190))
    board = only([attacked("autoattack", r, model=m, clean=c) for m, r, c in entries])
    assert names(board) == ["high", "low", "worse"]
    assert [x.rank for x in board.ranked] == [(1, 2), (1, 2), (3, 3)]


def corrupted(model: str, right: int, clean: int, defense: str = "none") -> Result:
    n = 200
    cell = Cell(
        track="corruption", data=make.DATA, model=make.named(model), defense=make.named(defense),
        corruption=make.named("fog"), severities=[1],
    )  # fmt: skip
    hits, base = make.outcome(right), make.outcome(clean)
    return Result(
        cell=cell,
        metrics={"clean_acc": rate(clean, n), "acc": rate(right, n), "acc@1": rate(right, n)},
        samples={"n": n, "clean": pack(base), "right@1": pack(hits)},
    )


def test_ties_and_losses_on_a_corruption_board() -> None:
    board = only(
        [corrupted("a", 100, 150), corrupted("b", 100, 180), corrupted("b", 90, 150, "jpeg"), corrupted("c", 9, 10)]
    )
    assert [x.title for x in board.ranked][:2] == ["b / none", "a / none"]
    found = {x.title: [f.evidence for f in x.flags if f.id == "clean_loss"] for x in board.lines}
    assert found["b / jpeg"] == ["clean accuracy 75.0 %, without the defense 90.0 %: 15.0 points lost"]
    assert not found["a / none"]
    assert not found["c / none"]


@pytest.mark.parametrize(("clean", "flagged"), [(159, True), (160, False), (190, False)])
def test_a_defense_that_loses_more_than_ten_points_is_flagged_and_still_ranked(clean: int, flagged: bool) -> None:
    """180 of 200 without the defense."""
    rows = [
        attacked("autoattack", 10),
        attacked("autoattack", 100, defense="jpeg", clean=clean),
        attacked("autoattack", 90, defense="jpeg", clean=clean, adaptive=True, seed=1),
        attacked("autoattack", 100, model="other", clean=100),  # another model has no twin here
    ]
    board = only(rows)
    entry = line(board, "jpeg")
    assert entry.rank is not None
    assert [f.id for f in entry.flags if f.id != "not_searched"] == ["clean_loss"] * flagged
    assert not line(board, "other").flags


def test_the_undefended_twin_may_be_on_another_board_but_not_on_other_images() -> None:
    rows = [attacked("square", 10, track="query"), attacked("autoattack", 9, defense="jpeg", clean=100, adaptive=True)]
    white = next(b for b in rank.boards(rows) if b.track == "white_box")
    assert "clean_loss" in [f.id for f in line(white, "jpeg").flags]
    elsewhere = attacked("square", 10, track="query", data={**make.DATA, "digest": "e" * 64})
    white = next(b for b in rank.boards([elsewhere, rows[1]]) if b.track == "white_box")
    assert "clean_loss" not in [f.id for f in line(white, "jpeg").flags]


def test_a_flag_of_the_victim_is_named_once() -> None:
    wrong = flag("input_convention", evidence="channel order BGR: 11 of 64 -> 58 of 64 correct")
    unmoved = flag("noop_attack", evidence="the attack changed none of 20 images")
    board = only([attacked(a, 10, flags=[wrong, unmoved]) for a in ("autoattack", "pgd", "fgsm")])
    found = [f.id for f in board.lines[0].flags]
    assert found.count("input_convention") == 1
    assert found.count("noop_attack") == 3


def test_flags_of_clean_images_do_not_catch_a_control() -> None:
    rows = scaled(160, 4, [flag("chance_accuracy"), flag("input_convention")])
    with make.controls(("defense", "logit_scaling")):
        assert "no check fired" in rank.uncaught_controls(rows)[0]


@pytest.mark.parametrize("severity", ["flag", "fail"])
def test_numbers_that_are_not_repeatable_are_not_ranked(severity: str) -> None:
    odd = flag("not_repeatable", severity, "two runs broke 41 and 47 of 64 images")
    entry = only([attacked("autoattack", 10), attacked("art/FGM", 8, flags=[odd])]).lines[0]
    assert entry.rank is None
    assert entry.reasons == ("not repeatable: art/FGM (two runs broke 41 and 47 of 64 images)",)


def controls_on_two_boards() -> tuple[list[Any], list[Result]]:
    rows = [
        *scaled(160, 4, [flag("logit_inflation")]),
        attacked("square", 100, track="query"),
        attacked("square", 150, track="query", defense="logit_scaling"),
    ]
    with make.controls(("defense", "logit_scaling")):
        return rank.boards(rows), rows


def test_a_control_says_on_every_board_what_the_checks_said() -> None:
    boards, _ = controls_on_two_boards()
    out = Console(width=200, file=io.StringIO(), force_terminal=False)
    tables.show(boards, out)
    told = re.findall(r"control: resnet / logit_scaling: (.*?) *\n", out.file.getvalue())  # type: ignore[attr-defined]
    assert [text.split("; no adaptive")[0] for text in told] == [
        "caught",
        "not judged: no check has to detect it on this board",
    ]
    text = export.as_markdown(boards)
    assert re.search(r"never ranked; .*; caught\n", text)
    assert "never ranked; not judged: no check has to detect it on this board" in text


def test_the_page_counts_the_controls_that_it_shows() -> None:
    text = page.render(*controls_on_two_boards())
    assert (text.count("control, caught"), text.count("control, not judged")) == (1, 1)
    assert "<b>1/1</b><span>planted controls caught, 1 not judged</span>" in text
