"""Boards of thefts: what is required, what is gated, and that no theft stands above its control."""

from __future__ import annotations

from typing import Any

import numpy as np
from siegebench.leaderboard import rank
from siegebench.leaderboard.board import Board, Line

from siegebench.cells import Cell, Result, pack, rate
from tests import rows
from tests.rows import N, named

SPECS = {
    "knockoff": named("knockoff", labels=False, repeat=1),
    "label_knockoff": named("label_knockoff", labels=True, repeat=1),
    "mean_knockoff": named("mean_knockoff", labels=False, repeat=5),
    "noise_theft": named("noise_theft", labels=False),
}
PHOTOGRAPHS = {**rows.DATA, "name": "photographs", "source": named("photographs")}
REQUIRED = {"knockoff": 120, "label_knockoff": 100, "noise_theft": 40}


def copied(
    theft: str, agree: int, *, defense: str = "none", queries: int = 1000, pool: Any = True, **more: Any
) -> Result:
    """The row of a copy that agrees on the first `agree` images."""
    flags = more.pop("flags", [])
    theft_of = SPECS.get(theft, named(theft))
    return rows.checked(Result(
        cell=Cell(
            track="extraction", data=rows.DATA, model=named("resnet"), defense=named(defense), theft=theft_of,
            attack=named("pgd"), pool=(PHOTOGRAPHS if pool is True else pool) or None,
            threat={"norm": "linf", "eps": 8 / 255, "access": more.pop("access", "score"), "queries": queries}, **more,
        ),
        metrics={
            "agreement": rate(agree, N), "clean_acc": rate(180, N), "copy_acc": rate(agree, N), "flips": rate(0, N),
            "transfer_robust_acc": rate(100, 180), "tv": {"value": 0.3}, "answer_l1": {"value": 0.1},
        },
        samples={"n": N, "clean": pack(rows.outcome(180)), "agree": pack(rows.outcome(agree)),
                 "copied": pack(rows.outcome(agree))},
        counts={"queries": queries}, flags=flags,
    ))  # fmt: skip


def every(defense: str = "none", agree: dict[str, int] | None = None, **more: Any) -> list[Result]:
    return [copied(name, k, defense=defense, **more) for name, k in (agree or REQUIRED).items()]


SHUFFLED = copied("shuffled_answers", 20)  # the control of thefts without labelled images


def victims(results: list[Result]) -> Board:
    return next(b for b in rank.boards(results) if b.primary == "agreement")


def thefts(results: list[Result]) -> dict[str, Line]:
    board = next(b for b in rank.boards(results) if b.primary == "agreement_lift")
    return {line.names["theft"]: line for line in board.lines}


def by_defense(board: Board) -> dict[str, Line]:
    return {line.names["defense"]: line for line in board.lines}


def test_victims_are_ranked_by_their_worst_copy() -> None:
    board = victims([
        *every(), SHUFFLED, *every("coarse_answers", {"knockoff": 60, "label_knockoff": 90, "noise_theft": 20}),
        copied("no_victim", 70, pool=False), copied("knockoff", 80, queries=200), copied("self_copy", 200, pool=False),
    ])  # fmt: skip
    lines = by_defense(board)
    assert [line.names["defense"] for line in board.ranked] == ["coarse_answers", "none"]
    assert lines["none"].value("agreement") == 120 / N  # a control is no theft
    assert lines["none"].texts["strongest"] == "knockoff"
    assert lines["none"].value("agreement@200") == 80 / N
    assert lines["none"].value("no_answers") == 70 / N
    assert lines["none"].value("theft:self_copy") == 1.0
    spoilt = lines["coarse_answers"]
    assert spoilt.value("agreement") == 90 / N
    assert [f.id for f in spoilt.flags] == ["label_beats_scores"]


def test_a_victim_without_the_required_thefts_is_shown_and_not_ranked() -> None:
    lines = by_defense(victims([*every(), SHUFFLED, copied("knockoff", 20, defense="reverse_sigmoid")]))
    assert lines["reverse_sigmoid"].rank is None
    assert lines["reverse_sigmoid"].reasons == ("not attacked by label_knockoff, noise_theft",)
    assert lines["none"].rank == (1, 1)


def test_a_random_defense_needs_a_theft_that_averages() -> None:
    without = by_defense(victims([*every(), SHUFFLED, *every("noisy_answers")]))["noisy_answers"]
    assert without.reasons == ("random, and not attacked by a theft that averages, such as mean_knockoff",)
    averaged = copied("mean_knockoff", 130, defense="noisy_answers")
    line = by_defense(victims([*every(), SHUFFLED, *every("noisy_answers"), averaged]))["noisy_answers"]
    assert line.rank == (2, 2)
    assert line.texts["strongest"] == "mean_knockoff"  # it has no control here, and others show that thefts work


def test_on_a_label_board_only_thefts_by_labels_are_required() -> None:
    found = [copied(name, k, access="label") for name, k in (("label_knockoff", 100), ("shuffled_answers", 20))]
    (line,) = victims(found).lines
    assert line.rank == (1, 1)


def test_a_defense_that_costs_decisions_is_not_ranked() -> None:
    found = every("reverse_sigmoid", flags=[rows.flag("utility_lost", "fail")])
    line = by_defense(victims([*every(), SHUFFLED, *found]))["reverse_sigmoid"]
    assert line.rank is None
    assert line.reasons == ("check failed: utility_lost",)


def test_victims_are_not_ranked_where_no_theft_exceeds_its_control() -> None:
    weak = {"knockoff": 60, "label_knockoff": 50, "noise_theft": 20}
    unasked = [copied("own_labels", 110), copied("own_labels", 110, defense="coarse_answers")]
    board = victims([*every(), *every("coarse_answers", weak), *unasked, SHUFFLED])
    lines = by_defense(board)
    assert [line.names["defense"] for line in board.ranked] == ["coarse_answers", "none"]
    assert lines["coarse_answers"].value("agreement") == 110 / N  # what a thief has who never asks
    assert lines["coarse_answers"].texts["strongest"] == "own_labels"
    nothing = victims([*every(agree=weak), *every("coarse_answers"), *unasked[:1], copied(
        "own_labels", 150, defense="coarse_answers"
    )])  # fmt: skip
    assert not nothing.ranked
    assert nothing.result == "Nothing is ranked yet (no theft exceeds its control on this network)."


def test_a_theft_that_never_exceeds_its_control_does_not_count() -> None:
    found = [*every(agree={"knockoff": 150, "label_knockoff": 150, "noise_theft": 60}, pool=rows.DATA), *(
        copied(name, k, pool=rows.DATA) for name, k in (("own_labels", 150), ("shuffled_answers", 20))
    )]  # fmt: skip
    by_noise = [copied("noise_theft", 60, pool=False), *(r for r in found if r.cell.theft != SPECS["noise_theft"])]
    (line,) = victims(by_noise).lines
    assert line.texts["strongest"] == "noise_theft"
    assert line.value("agreement") == 60 / N
    assert line.value("theft:knockoff") == 150 / N


def test_without_a_control_no_victim_is_ranked() -> None:
    (line,) = victims(every()).lines
    assert line.rank is None
    assert line.reasons[0].startswith("knockoff: its control was not run: own_labels or random_network")


def test_a_theft_is_ranked_by_what_it_exceeds_its_control() -> None:
    found = thefts([*every(), copied("shuffled_answers", 45), copied("no_victim", 150, pool=False)])
    assert found["knockoff"].rank == (1, 1)
    assert found["knockoff"].value("agreement_lift") == (120 - 45) / N
    assert found["knockoff"].value("control") == 45 / N  # no_victim has labelled images that knockoff has not
    assert found["label_knockoff"].rank == (2, 2)
    assert found["noise_theft"].rank is None
    assert found["noise_theft"].reasons == (
        "not better than its control: agrees on 20.0 %, shuffled_answers on 22.5 %",
    )
    assert [f.id for f in found["noise_theft"].flags] == ["no_lift"]
    assert found["no_victim"].rank is None
    assert found["no_victim"].control


def test_the_control_has_the_images_of_the_theft() -> None:
    in_domain = thefts([*every(), copied("shuffled_answers", 20), copied("own_labels", 118)])
    assert in_domain["knockoff"].value("control") == 118 / N
    assert in_domain["knockoff"].rank is None  # two images more are not significant
    noise = thefts([
        copied("noise_theft", 40, pool=False), copied("shuffled_answers", 20), copied("own_labels", 118),
    ])["noise_theft"]  # fmt: skip
    assert noise.value("control") == 20 / N  # it has no image of the pool
    jacobian = thefts([
        copied("jacobian", 150, pool=False), copied("no_victim", 140, pool=False), copied("shuffled_answers", 20),
    ])["jacobian"]  # fmt: skip
    assert jacobian.value("control") == 140 / N  # it starts from images that this control has with labels
    assert jacobian.rank == (1, 1)


def test_without_a_control_no_theft_is_ranked() -> None:
    assert "its control was not run" in thefts(every())["knockoff"].reasons[0]


def test_on_images_of_the_victims_own_data_the_control_has_their_labels() -> None:
    weak = [copied("knockoff", 150, pool=rows.DATA), copied("shuffled_answers", 20, pool=rows.DATA)]
    (reason,) = thefts(weak)["knockoff"].reasons
    assert "own_labels, which has their true labels, was not run" in reason
    assert not thefts([*weak, copied("own_labels", 60, pool=rows.DATA)])["knockoff"].reasons


def test_several_seeds_are_one_line() -> None:
    found = [copied(name, k + s, seed=s) for name, k in REQUIRED.items() for s in (0, 1)]
    (line,) = victims([*found, *(copied("shuffled_answers", 20, seed=s) for s in (0, 1))]).lines
    assert line.value("agreement") == (120.5) / N
    assert line.value("seeds") == 2
    assert line.rank == (1, 1)


def test_thefts_without_a_pool_stand_beside_each_pool() -> None:
    other = {**rows.DATA, "digest": "e" * 64}
    found = [*every(pool=True), copied("random_network", 20, pool=False)]
    more = [
        Result(cell=Cell(**{**r.cell.as_dict(), "pool": other}), metrics=r.metrics, samples=r.samples)
        for r in found[:1]
    ]
    boards = [b for b in rank.boards([*found, *more]) if b.primary == "agreement"]
    assert len(boards) == 2
    assert all("theft:random_network" in {c.id for c in b.columns} for b in boards)
    assert np.isclose(boards[0].lines[0].value("theft:random_network") or 0, 0.1)


def test_an_untrained_network_is_no_sufficient_control() -> None:
    weak = thefts([copied("knockoff", 150), copied("random_network", 20, pool=False)])
    assert "its only control is an untrained network" in weak["knockoff"].reasons
    both = [copied("knockoff", 150), copied("random_network", 60, pool=False), copied("shuffled_answers", 20)]
    assert not thefts(both)["knockoff"].reasons, "the better of two controls may be the untrained one"
