"""Boards of evasion: planted outcomes, the worst case of each image, who is ranked and why not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from siegebench.leaderboard import export, page, rank

from siegebench.cells import Result, rate
from tests import rows as make
from tests.rows import N, attacked, flag, measured, named, outcome

from .boards import line, only, ranked_row


def test_planted_outcomes_give_the_planted_groups() -> None:
    results = [
        *ranked_row("autoattack", 160, "a"), *ranked_row("autoattack", 156, "b"),  # 4 discordant samples: p = 0.125
        *ranked_row("autoattack", 100, "c"), *ranked_row("autoattack", 97, "d"),  # 3: p = 0.25; to the others p < 1e-15
        *ranked_row("autoattack", 2),
    ]  # fmt: skip
    board = only(results)
    assert [(x.names["defense"], x.place) for x in board.lines] == [
        ("a", "1-2"), ("b", "1-2"), ("c", "3-4"), ("d", "3-4"), ("none", "5"),
    ]  # fmt: skip
    number = board.lines[0].number("robust_acc")
    assert {"value": number.value, "low": number.low, "high": number.high, "n": number.n} == rate(160, N)


def test_the_number_is_the_worst_case_of_each_image_not_the_worst_attack() -> None:
    left, right = outcome(180), outcome(180)
    left[:60], right[60:120] = False, False
    board = only([attacked("autoattack", left), attacked("pgd", right), attacked("pgd", left, seed=1)])
    entry = board.lines[0]
    assert entry.value("attack:autoattack") == 120 / N
    assert entry.value("attack:pgd") == 60 / N  # over its two seeds
    assert entry.value("robust_acc") == 60 / N
    assert entry.texts["worst_attack"] == "pgd"
    assert entry.value("clean_acc") == 180 / N
    assert entry.value("passes") == 3 * 40
    assert set(entry.number("robust_acc").keys) == set(entry.keys)
    assert len(entry.number("attack:autoattack").keys) == 1


@pytest.mark.parametrize(
    ("results", "reason"),
    [
        ([attacked("pgd", 90)], "required attack missing: autoattack"),
        ([attacked("autoattack", 90, defense="jpeg")], "no adaptive attack"),
        ([attacked("apgd", 90, defense="jpeg", adaptive=True)], "required attack missing"),
        ([attacked("autoattack", 90, flags=[flag("nan", "fail")])], "check failed: nan"),
        ([attacked("autoattack", 90), make.measured("none", [flag("hidden", "fail")])], "check failed: hidden"),
        ([attacked("autoattack", 90), make.broken(attacked("pgd", 0))], "failed: pgd (CUDA went away)"),
        ([make.broken(attacked("autoattack", 0), "no batch norm", "not_applicable")], "not applicable: no batch norm"),
    ],
)
def test_unranked_with_its_reason(results: list[Result], reason: str) -> None:
    entry = only(results).lines[0]
    assert entry.rank is None
    assert entry.place == ""
    assert any(reason in r for r in entry.reasons), entry.reasons


@pytest.mark.parametrize(
    ("kind", "attack", "reason"),
    [
        ("sequence", "fgsm", "required attack missing: apgd or pgd"),  # AutoAttack does not take sequences
        ("sequence", "pgd", ""),
        ("events", "sda", ""),  # no iterative attack takes them
        ("image", "pgd", "required attack missing: autoattack"),
    ],
)
def test_a_required_attack_takes_the_kind_of_data(kind: str, attack: str, reason: str) -> None:
    row = attacked(attack, 90, data={**make.DATA, "kind": kind})
    undefended = only([row]).lines[0]
    assert undefended.reasons == ((reason,) if reason else ())
    searched = only([attacked(attack, 90, defense="jpeg", data={**make.DATA, "kind": kind})]).lines[0]
    assert ("not_searched" in {f.id for f in searched.flags}) is (kind == "image")


def test_what_is_enough_to_be_ranked() -> None:
    wrapped = named("bpda", attack=named("autoattack"))  # adaptive and required in one
    board = only([
        attacked("autoattack", 90), attacked(wrapped, 70, defense="jpeg", adaptive=True, flags=[flag("odd")]),
        make.broken(attacked("cw", 0, defense="jpeg"), "only L2", "not_applicable"),
    ])  # fmt: skip
    assert [x.status for x in board.lines] == ["ranked", "ranked"]
    assert {f.id for f in line(board, "jpeg").flags} == {
        "odd", "fewer_attacks", "attack_not_applicable", "not_searched",
    }  # fmt: skip


def test_outcomes_of_other_images_are_not_compared() -> None:
    short = {**make.DATA, "count": 100}
    odd = replace(
        attacked("autoattack", 90, defense="none", model="vit"), samples=attacked("autoattack", 90, data=short).samples
    )
    board = only([attacked("autoattack", 90), attacked("pgd", 95), odd])
    assert line(board, "vit").rank is None
    assert "100 images" in line(board, "vit").reasons[0]
    assert line(board, "resnet").rank == (1, 1)


def test_randomised_victims_show_expected_accuracy_of_the_worst_attack() -> None:
    metrics = [{"expected_acc": {"value": v}, "any_hit_acc": {"value": v - 0.1}} for v in (0.4, 0.3)]
    entry = only([attacked("autoattack", 90, metrics=metrics[0]), attacked("pgd", 95, metrics=metrics[1])]).lines[0]
    assert (entry.value("expected_acc"), entry.value("any_hit_acc")) == (0.3, pytest.approx(0.2))
    assert len(entry.number("expected_acc").keys) == 1


def test_measures_stand_beside_the_attacks_and_never_rank() -> None:
    rows = [attacked("autoattack", 90, model=m) for m in ("a", "b")]
    flat = [measured("none", [], m, "flatness", delta=v) for m, v in (("a", 0.25), ("b", 0.75))]
    checks = [measured("none", [], m, zero_gradient=0.0) for m in ("a", "b")]
    (plain,), (board,) = rank.boards(rows), rank.boards([*rows, *flat, *checks])
    assert [line.rank for line in board.lines] == [line.rank for line in plain.lines]
    assert {line.names["model"]: line.value("measure:flatness delta") for line in board.lines} == {"a": 0.25, "b": 0.75}
    added = [c for c in board.columns if c.id.startswith("measure:")]
    assert [c.title for c in added] == ["flatness delta"]
    assert not added[0].main
    assert "flatness delta" in export.as_markdown([board])
    html = page.render([board], [*rows, *flat, *checks])
    assert "Measures" in html
    assert "flatness delta" in html


@pytest.mark.parametrize(
    ("kind", "norm", "said"),
    [
        (None, "linf", "every pixel by at most 8 of 255 grey levels"),
        ("sequence", "linf", "every coordinate by at most 0.0313725"),
        ("sequence", "l0", "at most 3.13725 % of the joints in frames, by any amount"),
        ("events", "l0", "at most 3.13725 % of the places at which an event can be"),
        ("text", "l0", "at most 3.13725 % of the characters, by any others"),
    ],
)
def test_the_ball_is_told_in_the_words_of_the_kind_of_data(kind: str | None, norm: str, said: str) -> None:
    row = attacked("pgd", 50)
    cell = row.cell
    data = cell.data if kind is None else {**cell.data, "kind": kind}
    threat = {**(cell.threat or {}), "norm": norm, "eps": 8 / 255}
    assert only([replace(row, cell=replace(cell, data=data, threat=threat))]).facts["change"] == said
