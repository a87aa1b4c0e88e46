"""The sentence of result: who survives, who ties, what undefended networks keep."""

from __future__ import annotations

from dataclasses import replace

import pytest
from siegebench.leaderboard import rank, sentences
from siegebench.leaderboard.board import Line, Number

from tests import rows as make
from tests.rows import attacked, outcome, repaired

from .boards import line, only, ranked_row


def entry(defense: str, value: float, rank: tuple[int, int] | None = (1, 1), **more: float) -> Line:
    numbers = {name: Number(v) for name, v in {"robust_acc": value, **more}.items()}
    return Line(names={"model": "net", "defense": defense}, numbers=numbers, rank=rank)


def test_who_survives_and_by_how_much() -> None:
    rows = [*ranked_row("autoattack", 2), *ranked_row("autoattack", 82, defense="pgd_at")]
    board = only(rows)
    assert board.result == (
        "The undefended network does not survive (1.0 % left); pgd_at keeps 41.0 % "
        "(+40.0 points against the same network without a defense)."
    )
    assert line(board, "pgd_at").value("gain") == pytest.approx(0.4)
    assert line(board, "none").value("gain") is None


def test_a_tie_at_zero_has_no_winner() -> None:
    rows = [row for i in range(15) for row in ranked_row("autoattack", 0, defense=f"d{i}" if i else "none")]
    assert only(rows).result == "Nothing survives: 0.0 % left."


def test_ties_are_named_or_counted() -> None:
    two = [entry("a", 0.5, (1, 2)), entry("b", 0.48, (1, 2)), entry("none", 0.2, (3, 3))]
    assert sentences.survival(two, "robust_acc") == (
        "The undefended network keeps 20.0 %; a (50.0 %) and b (48.0 %) keep the most, too close to tell apart."
    )
    told = sentences.proof([entry("a", 0.5, (1, 2)), entry("b", 0.48, (1, 2))], "robust_acc")
    assert told == (
        "a (50.0 %) and b (48.0 %) certify the largest part of the images, on average over the radii, "
        "too close to tell apart."
    ), "what the rates are a share of is said once"
    assert "keep the largest part of the views, too" in sentences.survival(two, "robust_acc", of=" of the views")
    many = [entry(f"d{i}", 0.5 + i / 100, (1, 9)) for i in range(9)]
    assert sentences.survival(many, "robust_acc") == "9 entries keep 50.0 to 58.0 %, too close to tell apart."


def test_undefended_networks_are_a_yardstick_only_if_none_of_them_leads() -> None:
    best, behind = (
        entry("none", 0.4, (1, 1)),
        replace(entry("none", 0.2, (2, 2)), names={"model": "b", "defense": "none"}),
    )
    told = sentences.proof([best, behind], "robust_acc")
    assert told == "net certifies 40.0 % of the images, on average over the radii."
    told = sentences.proof([entry("ibp", 0.4, (1, 1)), behind], "robust_acc")
    assert told.startswith("Without a defense at most 20.0 % are certified; ibp on net certifies 40.0 %")
    nothing = replace(behind, numbers={"robust_acc": Number(0.0)})
    told = sentences.proof([entry("ibp", 0.4, (1, 1)), nothing], "robust_acc")
    assert told.startswith("Without a defense nothing is certified; ibp on net certifies 40.0 %")


def test_without_a_rank_there_is_no_result() -> None:
    board = only([attacked("pgd", 150)])
    assert board.result == "Nothing is ranked yet (required attack missing: autoattack)."
    two = [replace(entry(name, 0.5, None), reasons=(why,)) for name, why in (("a", "one reason"), ("b", "another"))]
    assert sentences.survival(two, "robust_acc") == sentences.NOTHING, "the table has them"
    three = [*two, replace(entry("c", 0.5, None), reasons=("a third one", "another"))]
    assert sentences.survival(three, "robust_acc") == "Nothing is ranked yet (2 of 3 entries: another)."
    assert sentences.detection([entry("a", 0.5, None)], "robust_acc") == sentences.NOTHING


def test_backdoor_boards_say_what_triggers_do_before_and_after() -> None:
    rows = [
        repaired(defense, backdoor, ca=ca, asr=asr)
        for backdoor in ("badnets", "blended")
        for defense, ca, asr in (("none", 0.9, 1.0), ("anp", 0.88, 0.04))
    ]
    (board,) = rank.boards(rows)
    assert board.result == (
        "Without a defense 100.0 % of the triggered images reach the target; "
        "after anp 4.0 %, with 88.0 % clean accuracy."
    )


def test_a_defense_that_ties_with_doing_nothing_is_not_announced() -> None:
    def kept(defense: str, asr: float) -> Line:
        return replace(entry(defense, 0.0, (1, 2)), numbers={"asr": Number(asr), "ca": Number(0.7)})

    told = sentences.repair([kept("none", 0.85), kept("fine_tuning", 0.88)])
    assert told == (
        "Without a defense 85.0 % of the triggered images reach the target; no defense is ranked above doing nothing."
    )


def test_detectors_near_chance_do_not_win() -> None:
    lines = [entry("a", 0.55), entry("b", 0.52, (2, 2))]
    tied = [entry("a", 0.9, (1, 2)), entry("b", 0.8, (1, 2))]
    told = "a (0.900) and b (0.800) separate best, too close to tell apart (AUROC; guessing: 0.5)."
    assert sentences.detection(tied, "robust_acc") == told, "numbers have a unit"
    assert "No detector is much better than guessing" in sentences.detection(lines, "robust_acc")
    assert "Every detector is worse than guessing" in sentences.detection([entry("a", 0.2)], "robust_acc")


def test_rules_that_give_away_as_much_as_plain_gradients_do_not_win() -> None:
    def rule(sharing: str, ranks: tuple[int, int]) -> Line:
        return Line(names={"model": "net", "sharing": sharing}, numbers={"identified": Number(1.0)}, rank=ranks)

    told = "From plain gradients 100.0 % of the images are identified; "
    tied = [rule("plain", (1, 2)), rule("clip", (1, 2))]
    assert sentences.privacy(tied) == f"{told}no rule reveals less."
    apart = [rule("plain", (2, 2)), rule("clip", (1, 1))]
    assert sentences.privacy(apart) == f"{told}clip reveals 100.0 %."


def test_a_planted_control_gains_nothing() -> None:
    with make.controls(*make.PLANTED):
        board = only([*ranked_row("autoattack", 2), attacked("no_op", outcome(180))])
    assert line(board, "none under no_op").value("gain") is None
