"""Checks across rows and planted controls: each fires where it must and nowhere else."""

from __future__ import annotations

import pytest
from siegebench.leaderboard import rank
from siegebench.leaderboard.board import Line

from siegebench.cells import Result, rate
from tests import rows as make
from tests.rows import N, attacked, flag, named, outcome

from .boards import line, only, scaled


def ids(entry: Line, severity: str | None = None) -> set[str]:
    return {f.id for f in entry.flags if severity in (None, f.severity)}


def test_one_step_beats_many() -> None:
    pgd = outcome(180)
    fgsm = pgd.copy()
    fgsm[:3] = False
    entry = only([attacked("autoattack", pgd), attacked("fgsm", fgsm)]).lines[0]
    assert ids(entry) == {"one_step_beats_many"}
    assert entry.rank is None
    fgsm[2] = True  # 2 of 200 are 1 per cent, not more
    assert ids(only([attacked("autoattack", pgd), attacked("fgsm", fgsm)]).lines[0]) == set()
    many = pgd.copy()
    many[:3] = False
    assert ids(only([attacked("pgd", pgd), attacked("autoattack", many), attacked("fgsm", many)]).lines[0]) == set()


@pytest.mark.parametrize(("black", "severity"), [(100, None), (99, "flag"), (80, "fail")])
def test_black_box_beats_white_box(black: int, severity: str | None) -> None:
    white, query = rank.boards([attacked("autoattack", 100), attacked("square", black, track="query")])
    assert ids(white.lines[0]) == ({"black_box_beats_white_box"} if severity else set())
    assert {f.severity for f in white.lines[0].flags} == ({severity} if severity else set())
    assert (white.lines[0].rank is None) == (severity == "fail")
    assert query.lines[0].rank == (1, 1)
    elsewhere = attacked("square", 10, track="query", threat={**make.SCORES, "eps": 16 / 255})
    assert ids(rank.boards([attacked("autoattack", 100), elsewhere])[0].lines[0]) == set()


def test_transferred_images_count_as_black_box() -> None:
    rows = [attacked("autoattack", 100), attacked("pgd", 60, track="transfer", threat=make.LINF)]
    assert ids(rank.boards(rows)[0].lines[0], "fail") == {"black_box_beats_white_box"}


def test_black_box_slack_is_a_fifth_of_a_point() -> None:
    many = {**make.DATA, "count": 1000}
    for black, fires in ((498, False), (497, True)):
        rows = [
            attacked("autoattack", 500, clean=900, data=many),
            attacked("nes", black, clean=900, data=many, track="query"),
        ]
        assert (ids(rank.boards(rows)[0].lines[0]) == {"black_box_beats_white_box"}) is fires


def test_weak_attack_gap_compares_plain_pgd_ce_with_the_worst_case() -> None:
    entry = only([attacked(named("pgd", loss="ce"), 150), attacked("autoattack", 100)]).lines[0]
    assert ids(entry, "info") == {"weak_attack_gap"}
    assert entry.rank == (1, 1)
    assert ids(only([attacked(named("pgd", loss="ce"), 140), attacked("autoattack", 100)]).lines[0]) == set()
    assert ids(only([attacked(named("pgd", loss="margin"), 150), attacked("autoattack", 100)]).lines[0]) == set()


def test_attacks_that_do_not_break_the_undefended_model_prove_nothing() -> None:
    def found(pgd: int, square: int, severity: str | None = "fail") -> set[str]:
        rows = [
            attacked("pgd", pgd), attacked("pgd", 150, defense="jpeg"), attacked("square", square, track="query"),
            attacked("autoattack", 140, defense="jpeg"),
        ]  # fmt: skip
        entry = line(rank.boards(rows)[0], "jpeg")
        return {f.id for f in entry.flags if f.severity == severity}

    assert found(60, 1) == {"not_broken_undefended"}  # square breaks the model, pgd does not
    assert found(4, 1) == set()
    assert found(60, 50) == set(), "the model without the defense may be robust itself"
    twice = [attacked("pgd", 60), attacked("square", 1, track="query"), attacked("apgd", 2)]
    twice += [attacked("pgd", 150, defense="jpeg"), attacked("apgd", 150, defense="jpeg")]
    assert "not_broken_undefended" not in ids(line(rank.boards(twice)[0], "jpeg")), "together they break it"


def test_not_monotone_in_eps() -> None:
    wide = {**make.LINF, "eps": 16 / 255}
    small, large = rank.boards([attacked("autoattack", 60), attacked("autoattack", 90, threat=wide)])
    assert ids(small.lines[0]) == set()
    assert ids(large.lines[0], "fail") == {"not_monotone"}
    assert "8/255" in large.lines[0].flags[0].evidence
    assert not any(
        b.lines[0].flags for b in rank.boards([attacked("autoattack", 60), attacked("autoattack", 60, threat=wide)])
    )


def test_a_number_that_its_outcomes_do_not_give_is_refused() -> None:
    row = attacked("autoattack", 100)
    row.metrics["robust_acc"] = rate(120, N)
    entry = only([row]).lines[0]
    assert ids(entry, "fail") == {"wrong_total"}
    assert entry.rank is None


INFLATED = [flag("logit_inflation", "flag", "72 % of the gradients vanish")]


@pytest.mark.parametrize(
    ("results", "why"),
    [
        (scaled(160, 4, INFLATED), None),
        (scaled(160, 4, []), "no check fired"),
        (scaled(160, 4, [flag("note", "info")]), "no check fired"),
        (scaled(160, 150, INFLATED), "75.0 %"),
        (scaled(160, 4, INFLATED)[1:], "was not run"),
        ([*scaled(160, 4, INFLATED)[2:], make.broken(attacked("pgd", 1, defense="logit_scaling"))], "was not run"),
    ],
)
def test_the_logit_scaling_control_must_be_caught(results: list[Result], why: str | None) -> None:
    with make.controls(("defense", "logit_scaling")):
        board, told = only(results), rank.uncaught_controls(results)
    entry = line(board, "logit_scaling")
    assert entry.control
    assert entry.status == "control"
    assert entry.rank is None
    assert board.ranked[0].names["defense"] == "none"
    if why is None:
        assert told == []
    else:
        assert len(told) == 1
        assert why in told[0]
        assert "logit_scaling" in told[0]


def test_a_planted_attack_must_carry_a_flag_and_never_counts() -> None:
    good = [attacked("autoattack", 30), attacked("pgd", 40)]
    silent = attacked("no_op", 180)
    seen = attacked("no_op", 180, flags=[flag("noop_attack", "fail", "all images came back unchanged")])
    with make.controls(("attack", "no_op")):
        assert rank.uncaught_controls([*good, seen]) == []
        assert "no_op" in rank.uncaught_controls([*good, silent])[0]
        assert rank.uncaught_controls(good) == []
        board = only([*good, seen])
        wrapped = attacked(named("eot", attack=named("no_op")), 180)
        assert len(rank.uncaught_controls([*good, wrapped])) == 1
    entry, planted = board.lines
    assert entry.rank == (1, 1)
    assert entry.flags == ()
    assert "attack:no_op" not in entry.numbers
    assert planted.names["defense"] == "none under no_op"
    assert planted.control
