"""Boards of certifiers: the ranking, the accuracy under attack beside it, and certificates that an attack broke."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from siegebench.leaderboard import pairs, rank
from siegebench.leaderboard.board import Board, Line

from siegebench.cells import Cell, Result, pack, rate
from tests import rows
from tests.rows import N, named

RADII = [0.25, 0.5, 1.0]
SMOOTHING = named("randomized_smoothing", sigma=0.5, n=1000, alpha=0.001)
IBP = named("ibp")


def ball(eps: float, norm: str = "l2") -> dict[str, Any]:
    return {"norm": norm, "eps": eps, "access": "gradient", "queries": None}


def proved(
    certifier: dict[str, Any], held: Sequence[int], *, defense: str = "none", clean: int = 180, seed: int = 0
) -> Result:
    """Certificates of the first `held` images at each radius."""
    outcomes = [rows.outcome(k) for k in held]
    return rows.checked(Result(
        cell=Cell(
            track="certified", data=rows.DATA, model=named("resnet"), defense=named(defense), certifier=certifier,
            threat=ball(RADII[-1]), radii=RADII, seed=seed,
        ),
        metrics={
            "clean_acc": rate(clean, N), "abstained": rate(10, N), "certified_acc": rate(sum(held) / len(held), N),
            **{f"certified_acc@{k}": rate(h, N) for k, h in enumerate(held)},
        },
        samples={
            "n": N, "clean": pack(rows.outcome(clean)), "abstained": pack(rows.outcome(10, start=190)),
            **{f"certified@{k}": pack(one) for k, one in enumerate(outcomes)},
        },
        timing={"seconds": 20.0},
    ))  # fmt: skip


def attacked(
    eps: float,
    left: int,
    *,
    certifier: dict[str, Any] | None = None,
    defense: str = "none",
    refuted: Sequence[int] = (),
) -> Result:
    row = rows.attacked("pgd", left, defense=defense, track="certified", threat=ball(eps))
    wrong = np.zeros(N, dtype=bool)
    wrong[list(refuted)] = True
    cell = Cell(**{**row.cell.as_dict(), "certifier": certifier})
    return rows.checked(Result(cell=cell, metrics=row.metrics, samples={**row.samples, "refuted": pack(wrong)}))


def attacks(lefts: Sequence[int] = (170, 160, 150), **more: Any) -> list[Result]:
    return [attacked(eps, left, **more) for eps, left in zip(RADII, lefts, strict=True)]


def only(found: list[Result]) -> tuple[Board, Line]:
    (board,) = rank.boards(found)
    (line,) = board.lines
    return board, line


def test_ranked_by_the_mean_over_the_radii_with_the_accuracy_under_attack_beside_it() -> None:
    weak = [proved(IBP, (100, 50, 0)), *attacks()]
    good = [proved(IBP, (160, 150, 140), defense="ibp_training"), *attacks((165, 160, 155), defense="ibp_training")]
    (board,) = rank.boards([*weak, *good])
    first, second = board.lines
    assert [first.names["defense"], second.names["defense"]] == ["ibp_training", "none"]
    assert (first.rank, second.rank) == ((1, 1), (2, 2))
    assert first.value("certified_acc") == pytest.approx(150 / N)
    assert first.value("attacked_acc") == pytest.approx(160 / N)
    assert first.value("gap") == pytest.approx(10 / N)
    middle = second.number("certified_acc@1")
    assert middle.value == 50 / N
    assert middle.low is not None
    assert middle.low < 50 / N
    assert second.value("attacked_acc@2") == 150 / N
    assert second.value("abstained") == 10 / N
    assert second.value("seconds") == pytest.approx(0.1)
    assert not rank.broken_certificates([*weak, *good])
    titles = [c.title for c in board.columns]
    assert titles[:5] == ["Certified", "Under attack", "Gap", "Clean", "Abstained"]
    assert "Certified, 0.5" in titles


def with_trigger(backdoor: str, abstained: int, held: Sequence[int], seed: int = 0, start: int = 0) -> Result:
    """The row of a network trained on a poisoned set; certificates without the trigger as in `proved`."""
    row = proved(SMOOTHING, (120, 100, 80), seed=seed)
    mean = sum(held) / len(held)
    return rows.checked(Result(
        cell=Cell(**{**row.cell.as_dict(), "backdoor": named(backdoor)}),
        metrics={
            **row.metrics, "ra": rate(held[0], N), "certified_acc_triggered": rate(mean, N),
            "abstained_triggered": rate(abstained, N),
        },
        samples={
            **row.samples, "abstained_triggered": pack(rows.outcome(abstained, start=start)),
            **{f"certified_triggered@{k}": pack(rows.outcome(h)) for k, h in enumerate(held)},
        },
        counts={"poisoned": 5, "train": 500},
    ))  # fmt: skip


def test_poisoned_training_has_columns_of_its_own_and_never_counts_for_the_rank() -> None:
    plain = [proved(SMOOTHING, (160, 150, 140)), *attacks((165, 160, 155), certifier=SMOOTHING)]
    board, line = only(plain)
    assert not {c.id for c in board.columns} & {"abstained_triggered", "worst_backdoor"}
    assert not any("trigger" in note for note in board.notes)
    strong = [with_trigger("strong", 100, (40, 20, 0), seed, start=30 * seed) for seed in (0, 1)]
    board, harmed = only([*plain, *strong, with_trigger("weak", 20, (90, 80, 70))])
    for name in ("certified_acc", "abstained", "clean_acc"):
        assert harmed.value(name) == line.value(name)
    assert harmed.rank == line.rank
    assert harmed.texts["worst_backdoor"] == "strong"
    assert harmed.value("abstained_triggered") == 130 / N  # with either seed
    assert harmed.value("certified_acc_triggered") == pytest.approx(20 / N)
    assert harmed.value("abstained_poisoned") == 10 / N
    assert harmed.value("certified_acc_poisoned") == pytest.approx(100 / N)
    assert {"Abstained, trigger", "Certified, trigger", "Backdoor"} <= {c.title for c in board.columns}
    assert any("abstention is no success" in note for note in board.notes)


def test_an_attack_within_a_smaller_radius_counts_at_the_larger_ones() -> None:
    _, line = only([proved(IBP, (100, 50, 0)), *attacks((170, 120, 150))])
    assert line.value("attacked_acc@2") == 120 / N


def test_a_broken_certificate_fails_the_run_by_name() -> None:
    at_half = attacked(0.5, 160, refuted=[3, 70])  # image 70 is certified at 0.25 only
    found = [proved(IBP, (100, 50, 20)), attacked(0.25, 170), at_half, attacked(1.0, 150)]
    _, line = only(found)
    marks = [m for m in line.flags if m.id == "certificate_broken"]
    assert {m.severity for m in marks} == {"fail"}
    assert len(marks) == 2  # at 0.5, and at 1.0, in which an image within 0.5 lies too
    assert line.rank is None
    assert "check failed: certificate_broken" in line.reasons
    told = rank.broken_certificates(found)
    expected = "pgd finds adversarial images of 1 of 50 images within their certified radius 0.5 (image 3"
    assert sum(expected in one for one in told) == 1
    assert told[0].startswith("resnet / none / ibp (")


def test_an_attack_beyond_a_radius_breaks_nothing() -> None:
    found = [proved(IBP, (100, 50, 0)), attacked(0.25, 170), attacked(0.5, 160), attacked(1.0, 150, refuted=[3, 70])]
    assert not rank.broken_certificates(found)


def test_few_wrong_certificates_are_chance_where_they_are_said_to_be() -> None:
    def found(refuted: Sequence[int]) -> list[Result]:
        last = attacked(1.0, 150, certifier=SMOOTHING, refuted=refuted)
        near = [attacked(eps, 170, certifier=SMOOTHING) for eps in RADII[:2]]
        return [proved(SMOOTHING, (160, 150, 140)), *near, last]

    board, line = only(found([5]))  # one of 140 at 0.001: 13 %
    assert [m.severity for m in line.flags] == ["flag"]
    assert line.rank == (1, 1)
    assert "alpha = 0.001" in board.notes[0]
    assert not rank.broken_certificates(found([5]))
    assert len(rank.broken_certificates(found([5, 6, 7]))) == 1


def test_attacks_on_the_model_itself_say_nothing_of_a_predictor_around_it() -> None:
    _, line = only([proved(SMOOTHING, (100, 50, 20)), *attacks()])
    assert line.rank is None
    assert line.reasons == ("not attacked within 0.25, 0.5, 1",)
    assert line.value("attacked_acc") is None
    (board,) = rank.boards([proved(IBP, (100, 50, 20)), proved(named("crown"), (120, 60, 30)), *attacks()])
    assert all(line.rank for line in board.lines)


def test_an_image_is_certified_if_all_seeds_say_so() -> None:
    second = proved(SMOOTHING, (100, 40, 10), seed=1)
    _, line = only([proved(SMOOTHING, (100, 50, 0)), second, *attacks(certifier=SMOOTHING)])
    assert [line.value(f"certified_acc@{k}") for k in range(3)] == [100 / N, 40 / N, 0.0]
    assert line.value("seeds") == 2


def test_a_planted_certifier_must_be_caught() -> None:
    honest = [proved(IBP, (100, 50, 20)), *attacks()]
    caught = [proved(IBP, (100, 50, 20)), attacked(0.25, 170, refuted=[3]), *attacks()[1:]]
    with rows.controls(("certifier", "ibp")):
        assert "no attack broke one of its certificates" in rank.uncaught_controls(honest)[0]
        assert not rank.uncaught_controls(caught)
        assert not rank.broken_certificates(caught)


def test_the_result_says_who_proves_most_and_what_undefended_networks_allow() -> None:
    trained = [proved(IBP, (160, 150, 140), defense="ibp_training"), *attacks((165, 160, 155), defense="ibp_training")]
    (board,) = rank.boards([*trained, proved(IBP, (20, 0, 0)), *attacks()])
    assert board.result == (
        "Without a defense at most 3.3 % are certified; ibp_training / ibp certifies 75.0 % of the images, on average "
        "over the radii."
    )
    (nothing,) = rank.boards([proved(IBP, (0, 0, 0)), *attacks()])
    assert nothing.result == "No certifier proves anything at these radii."


def test_two_certifiers_are_compared_image_by_image_within_the_middle_radius() -> None:
    (board,) = rank.boards([proved(IBP, (100, 50, 20)), proved(named("crown"), (120, 60, 30)), *attacks()])
    for line in board.lines:
        assert pairs.kept(line).sum() == round(line.kept_of * (line.value("certified_acc@1") or 0.0))
    compared = [pairs.kept(line) for line in board.lines]
    assert sorted(int(one.sum()) for one in compared) == [50, 60]
    assert any("image by image" in note for note in board.notes)
