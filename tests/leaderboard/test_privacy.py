"""Boards of sharing rules: the ranking, what is shown and not ranked, and the control."""

from __future__ import annotations

from typing import Any

import pytest
from siegebench.leaderboard import rank

from siegebench.cells import Cell, Result, pack, rate
from tests import rows
from tests.rows import N, named

CLIENT = {"batch": 1, "state": "initial", "smoothing": 0.0, "mixup": False, "gallery": 500}


def row(leak: str, hits: int, rule: dict[str, Any] | str = "plain", *, start: int = 0, cos: float = 1.0,
        model: str = "lenet_sigmoid", seed: int = 0, status: Any = "ok") -> Result:  # fmt: skip
    sharing = named(rule) if isinstance(rule, str) else rule
    cell = Cell(track="privacy", data=rows.DATA, model=named(model), leak=named(leak), sharing=sharing, client=CLIENT,
                seed=seed)  # fmt: skip
    if status != "ok":
        return rows.checked(Result(cell=cell, status=status, error={"message": "no layer"}))
    return rows.checked(Result(
        cell=cell,
        metrics={"identified": rate(hits, N), "psnr": {"value": 0.1 * hits, "n": N}, "ssim": {"value": 0.5, "n": N},
                 "utility_cos": {"value": cos}},
        samples={"n": N, "identified": pack(rows.outcome(hits, start=start))},
    ))  # fmt: skip


NOISE = named("noise", sigma=0.1)


def test_ranked_by_what_any_leak_identifies() -> None:
    found = [row("dlg", 190), row("analytic", 0, status="not_applicable"), row("dlg", 20, NOISE),
             row("analytic", 30, NOISE, start=20), row("prior", 0), row("prior", 1, NOISE)]  # fmt: skip
    (board,) = rank.boards(found)
    first, second = board.lines
    assert [first.names["sharing"], second.names["sharing"]] == ["noise", "plain"]
    assert (first.rank, second.rank) == ((1, 1), (2, 2))
    assert first.value("identified") == 50 / N  # 20 by one leak and 30 others by the other
    assert first.texts["worst_leak"] == "analytic"
    assert first.value("leak:dlg") == 20 / N
    assert first.value("chance") == 1 / N
    assert first.value("psnr") == pytest.approx(3.0)
    assert "reveal " not in board.result
    assert "95.0 %" in board.result


def reasons(found: list[Result], rule: str) -> str:
    (board,) = rank.boards(found)
    return "; ".join(next(line for line in board.lines if line.names["sharing"] == rule).reasons)


def test_a_rule_counts_only_where_plain_gradients_leak() -> None:
    assert "its plain gradients identify 50.0 %" in reasons([row("dlg", 100), row("dlg", 0, NOISE)], "noise")
    assert "were not attacked" in reasons([row("dlg", 0, NOISE)], "noise")
    assert reasons([row("dlg", 170), row("dlg", 0, NOISE)], "noise") == ""


def test_a_release_that_points_elsewhere_is_not_ranked() -> None:
    assert "cosine 0.40 < 0.5" in reasons([row("dlg", 190), row("dlg", 0, NOISE, cos=0.4)], "noise")


def test_all_leaks_must_be_tried() -> None:
    found = [row("dlg", 190), row("inverting_gradients", 180), row("dlg", 0, NOISE)]
    assert "not attacked by inverting_gradients" in reasons(found, "noise")


def test_a_control_above_chance_is_seen() -> None:
    found = [row("dlg", 190), row("prior", 9), row("dlg", 5, NOISE), row("prior", 1, NOISE)]
    assert "control_above_chance" in reasons(found, "plain")
    assert reasons(found, "noise") == ""


def test_a_board_of_plain_gradients_alone_says_what_they_give_away() -> None:
    (board,) = rank.boards([row("dlg", 190)])
    assert board.result == "From plain gradients 95.0 % of the images are identified."


def test_clients_that_differ_have_their_own_boards() -> None:
    other = row("dlg", 150)
    cell = Cell(**{**other.cell.as_dict(), "client": {**CLIENT, "batch": 4}})
    assert len(rank.boards([row("dlg", 190), Result(cell=cell, metrics=other.metrics, samples=other.samples)])) == 2


def test_seeds_are_taken_together() -> None:
    (board,) = rank.boards([row("dlg", 190), row("dlg", 10, NOISE), row("dlg", 10, NOISE, start=50, seed=1)])
    line = next(line for line in board.lines if line.names["sharing"] == "noise")
    assert line.value("identified") == 20 / N
    assert line.value("seeds") == 2
