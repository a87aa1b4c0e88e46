"""Statistics, ranking, cross-row checks, controls, terminal tables and exports, on rows with a planted answer."""

from __future__ import annotations

import csv
import io
import json
import math
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import binomtest
from siegebench.leaderboard import export, page, rank, stats, tables
from siegebench.leaderboard.board import Board, Line, display
from sklearn.metrics import roc_auc_score

from siegebench.cells import Result, rate
from siegebench.stats import auroc
from tests import rows as make
from tests.rows import N, attacked, detected, flag, judged, measured, named, outcome, repaired


def only(results: list[Result]) -> Board:
    boards = rank.boards(results)
    assert len(boards) == 1, [b.title for b in boards]
    return boards[0]


def line(board: Board, *names: str) -> Line:
    found = [x for x in board.lines if set(names) <= set(x.names.values())]
    assert len(found) == 1, (names, [x.title for x in board.lines])
    return found[0]


def ranked_row(attack: str, right: Any, defense: str = "none", **more: Any) -> list[Result]:
    """The required attack, and the adaptive one where there is a defense."""
    first = attacked(attack, right, defense=defense, **more)
    if defense == "none":
        return [first]
    return [first, attacked(named("eot", attack=named("apgd")), right, defense=defense, adaptive=True, **more)]


# ------------------------------------------------------------------------------------------------------- statistics


def test_mcnemar_is_the_exact_binomial_test_on_discordant_samples() -> None:
    a, b = outcome(60, 100), outcome(52, 100, start=5)  # a alone: 5 + 3, b alone: 0
    a[:5], b[:5] = True, False
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    by_hand = min(
        1.0, 2 * sum(math.comb(only_a + only_b, k) for k in range(min(only_a, only_b) + 1)) / 2 ** (only_a + only_b)
    )
    assert (only_a, only_b) == (8, 0)
    assert stats.mcnemar(a, b) == pytest.approx(by_hand) == pytest.approx(2 / 256)
    assert stats.mcnemar(a, b) == stats.mcnemar(b, a)
    assert stats.mcnemar(a, a) == 1.0
    mixed = outcome(60, 100, start=3)
    assert stats.mcnemar(a, mixed) == pytest.approx(binomtest(3, 6, 0.5).pvalue)
    with pytest.raises(ValueError, match="same samples"):
        stats.mcnemar(a, outcome(3, 50))


def test_holm_multiplies_by_the_tests_left_and_stays_monotone() -> None:
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.9, 0.8]) == [1.0, 1.0]
    assert stats.holm([]) == []


def test_rank_groups_span_what_cannot_be_told_apart() -> None:
    p = {(0, 1): 0.5, (1, 2): 0.5, (0, 2): 0.001}  # a chain: neighbours alike, ends apart
    groups = stats.rank_groups(3, lambda i, j: (j - i, p[i, j]))
    assert groups == [(1, 2), (1, 3), (2, 3)]
    assert stats.rank_groups(3, lambda i, j: (j - i, 0.0)) == [(1, 1), (2, 2), (3, 3)]
    assert stats.rank_groups(3, lambda i, j: (0.0, 1.0)) == [(1, 3)] * 3
    assert stats.rank_groups(1, lambda i, j: (0.0, 1.0)) == [(1, 1)]


def test_sign_flips_is_exact_and_needs_six_units_for_five_per_cent() -> None:
    assert stats.sign_flips(np.array([1.0] * 5)) == 2 / 32
    assert stats.sign_flips(np.array([1.0] * 6)) == 2 / 64
    assert stats.sign_flips(np.array([3.0])) == 1.0
    assert stats.sign_flips(np.zeros(4)) == 1.0
    assert stats.sign_flips(np.ones(30)) < 0.01


def test_difference_of_means_uses_errors_where_they_are_known() -> None:
    a, b = {"x": (0.9, 0.01), "y": (0.8, 0.01)}, {"x": (0.8, 0.01), "y": (0.8, 0.01), "z": (0.0, 0.01)}
    gap, p = stats.difference_of_means(a, b)
    assert gap == pytest.approx(0.05)  # over x and y only
    assert p == pytest.approx(math.erfc(0.05 / 0.01 / math.sqrt(2)))  # error of the difference: sqrt(4) * 0.01 / 2
    assert stats.difference_of_means({"x": (0.9, None)}, {"x": (0.1, None)}) == (pytest.approx(0.8), 1.0)
    assert stats.difference_of_means({}, a) == (0.0, 1.0)


def test_auroc_agrees_with_scikit_learn_ties_included() -> None:
    rng = np.random.default_rng(3)
    clean, bad = rng.integers(0, 6, 40) * 1.0, rng.integers(2, 8, 25) * 1.0
    expected = roc_auc_score([0] * 40 + [1] * 25, [*clean, *bad])
    assert auroc(positive=bad, negative=clean) == pytest.approx(expected)
    assert auroc(positive=clean, negative=bad) == pytest.approx(1 - expected)
    low, high = stats.auroc_interval(positive=bad, negative=clean) or (1.0, 0.0)
    assert low < expected < high
    assert stats.auroc_interval(positive=bad, negative=clean) == (low, high)  # no hidden state
    assert stats.auroc_interval(positive=bad, negative=clean[:2]) is None


def test_bootstrap_of_a_mean_matches_the_normal_interval_on_many_values() -> None:
    values = np.random.default_rng(0).normal(0.7, 0.1, 400)
    low, high = stats.mean_interval(list(values)) or (0.0, 0.0)
    half = 1.96 * values.std() / 20
    assert (low, high) == (
        pytest.approx(values.mean() - half, abs=0.002),
        pytest.approx(values.mean() + half, abs=0.002),
    )
    assert stats.mean_interval([0.1, 0.2]) is None


def test_average_of_rates_squares_and_adds_the_arms() -> None:
    assert stats.average_of_rates((0.8, 0.5, 0.9), (0.6, 0.2, 0.7)) == (
        pytest.approx(0.7), pytest.approx(0.7 - 0.25), pytest.approx(0.7 + math.sqrt(0.02) / 2),
    )  # fmt: skip


# -------------------------------------------------------------------------------------------------------- white box


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


def test_what_is_enough_to_be_ranked() -> None:
    wrapped = named("bpda", attack=named("autoattack"))  # adaptive and required in one
    board = only([
        attacked("autoattack", 90), attacked(wrapped, 70, defense="jpeg", adaptive=True, flags=[flag("odd")]),
        make.broken(attacked("cw", 0, defense="jpeg"), "only L2", "not_applicable"),
    ])  # fmt: skip
    assert [x.status for x in board.lines] == ["ranked", "ranked"]
    assert {f.id for f in line(board, "jpeg").flags} == {"odd", "fewer_attacks", "attack_not_applicable"}


def test_boards_split_by_data_and_threat_but_not_by_training_set() -> None:
    other_eps = {**make.LINF, "eps": 4 / 255}
    other_data = {**make.DATA, "digest": "e" * 64}
    trained = {**make.DATA, "train_digest": "f" * 64}
    same = [attacked("autoattack", 90), *ranked_row("autoattack", 80, "trades", data=trained)]
    assert len(only(same).ranked) == 2
    more = [*same, attacked("autoattack", 95, threat=other_eps), attacked("autoattack", 95, data=other_data)]
    assert len(rank.boards(more)) == 3
    titles = [b.title for b in rank.boards(more) if b.facts["data hash"].startswith("d")]
    assert titles == ["White box: linf 4/255 on shapes", "White box: linf 8/255 on shapes"]


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


# ------------------------------------------------------------------------------------------------------------ flags


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


# --------------------------------------------------------------------------------------------------------- controls

INFLATED = [flag("logit_inflation", "flag", "72 % of the gradients vanish")]


def scaled(pgd: int, worst: int, flags: list[dict[str, str]]) -> list[Result]:
    return [
        attacked("pgd", pgd, defense="logit_scaling"), attacked("autoattack", worst, defense="logit_scaling"),
        measured("logit_scaling", flags), attacked("autoattack", 3),
    ]  # fmt: skip


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


# --------------------------------------------------------------------------------------------------------- backdoor


def test_backdoor_board_averages_seeds_then_attacks_and_punishes_harm() -> None:
    results = [
        *(repaired("none", b, ca=0.9, asr=1.0, seed=s) for b in ("badnets", "wanet") for s in (0, 1)),
        repaired("anp", "badnets", ca=0.9, asr=0.0), repaired("anp", "badnets", ca=0.9, asr=0.2, seed=1),
        repaired("anp", "wanet", ca=0.9, asr=0.5), repaired("anp", "wanet", ca=0.9, asr=0.5, seed=1),
        *(repaired("destroy", b, ca=0.1, asr=0.1, seed=s) for b in ("badnets", "wanet") for s in (0, 1)),
        *(repaired("fine_tuning", b, ca=0.9, asr=0.9, seed=s) for b in ("badnets", "wanet") for s in (0, 1)),
    ]  # fmt: skip
    board = only(results)
    assert [x.names["defense"] for x in board.lines] == ["anp", "fine_tuning", "none", "destroy"]
    anp = line(board, "anp")
    assert anp.value("fidelity") == pytest.approx((0.9 + 0.5) / 2)
    assert anp.value("worst_asr") == pytest.approx(0.5)
    assert anp.value("fidelity:badnets") == pytest.approx(0.9)
    assert line(board, "none").value("fidelity") == 0.0
    destroyed = line(board, "destroy")
    assert destroyed.value("der") > line(board, "none").value("der")  # type: ignore[operator]  # why DER does not rank
    assert "80.0 points" in destroyed.reasons[0]
    assert anp.rank == (1, 1)
    worse = [
        replace(r, metrics={**r.metrics, "fidelity": {"value": -0.2}})
        for r in results
        if r.cell.defense["name"] == "anp"
    ]  # type: ignore[index]
    rest = [r for r in results if r.cell.defense["name"] != "anp"]  # type: ignore[index]
    assert [x.names["defense"] for x in only([*rest, *worse]).ranked][-1] == "anp"


def test_backdoor_ties_are_broken_by_worst_success_then_rir() -> None:
    def twice(defense: str, asr: tuple[float, float], ra: float) -> list[Result]:
        return [repaired(defense, b, ca=0.9, asr=a, ra=ra) for b, a in zip(("badnets", "wanet"), asr, strict=True)]

    board = only(
        [*twice("uneven", (0.0, 0.4), 0.9), *twice("even", (0.2, 0.2), 0.5), *twice("better", (0.2, 0.2), 0.8)]
    )
    assert [x.names["defense"] for x in board.lines] == ["better", "even", "uneven"]
    assert {x.place for x in board.lines} == {"1-3"}
    assert any("No fine_tuning and no none row" in note for note in board.notes)


def test_attacks_that_failed_themselves_are_left_out_and_named() -> None:
    strong = [repaired(d, "badnets", ca=0.9, asr=a) for d, a in (("none", 1.0), ("fine_tuning", 0.1))]
    weak = [repaired(d, "sig", ca=0.9, asr=0.0, asr0=0.3) for d in ("none", "fine_tuning")]
    board = only([*strong, *weak])
    assert line(board, "fine_tuning").value("fidelity") == pytest.approx(0.9)
    assert line(board, "fine_tuning").value("attacks") == 1
    assert any("sig at rate 0.1 (seeds 0, undefended ASR at most 30.0 %)" in note for note in board.notes)
    nothing = only(weak)
    assert not nothing.ranked
    assert "strong enough" in nothing.lines[0].reasons[0]


def test_a_defense_must_face_every_attack_of_the_board() -> None:
    both = [repaired("none", b, ca=0.9, asr=1.0) for b in ("badnets", "wanet")]
    half = repaired("anp", "badnets", ca=0.9, asr=0.0)
    assert line(only([*both, half]), "anp").reasons == ("not run on every backdoored model of the board: wanet",)
    idle = make.broken(repaired("anp", "wanet", ca=0.9, asr=0.0), "no batch norm", "not_applicable")
    assert line(only([*both, half, idle]), "anp").reasons == ("not applicable under wanet",)
    failed = make.broken(repaired("anp", "wanet", ca=0.9, asr=0.0))
    assert line(only([*both, half, failed]), "anp").reasons == ("failed: wanet (CUDA went away)",)


# -------------------------------------------------------------------------------------------------------- detection


def test_input_and_dataset_detectors_stand_on_boards_of_their_own() -> None:
    values = {"badnets": 0.95, "wanet": 0.7}
    results = [detected("strip", b, v) for b, v in values.items()]
    results += [detected("spectral", b, v - 0.1, dataset=True) for b, v in values.items()]
    boards = rank.boards(results)
    assert [b.title.split(":")[0] for b in boards] == ["Input detection", "Dataset detection"]
    strip = boards[0].lines[0]
    assert strip.value("auroc") == pytest.approx(0.825)
    assert strip.value("auroc_min") == 0.7
    assert strip.value("auroc_all") == pytest.approx(0.815)
    assert strip.number("auroc:wanet").keys == strip.number("auroc_min").keys
    assert "auroc_all" not in boards[1].lines[0].numbers


def test_model_detectors_are_judged_on_a_population() -> None:
    def population(detector: str, size: int, wrong: int) -> list[Result]:
        """`wrong` false alarms among `size` clean models; every backdoored model found."""
        clean = [judged(detector, i, False, 5.0 if i < wrong else 0.0, i < wrong) for i in range(size)]
        return clean + [judged(detector, 1000 + i, True, 3.0, True, 1.0 if i % 2 else 0.0) for i in range(size)]

    board = only([*population("careful", 24, 0), *population("jumpy", 24, 12)])
    assert [(x.names["detector"], x.place) for x in board.lines] == [("careful", "1"), ("jumpy", "2")]
    jumpy = line(board, "jumpy")
    alarms = jumpy.number("false_alarms")
    assert {"value": alarms.value, "low": alarms.low, "high": alarms.high, "n": alarms.n} == rate(12, 24)
    assert jumpy.value("balanced_accuracy") == pytest.approx(0.75)
    assert jumpy.value("auroc") == pytest.approx(0.5)
    assert jumpy.value("target_hit") == pytest.approx(0.5)
    assert board.facts["population"] == "24 clean, 24 backdoored"
    careful = line(board, "careful").number("balanced_accuracy")
    assert careful.low is not None
    assert careful.low < 0.95  # 24 of 24 is not certainty

    small = only(population("careful", 6, 0))
    assert small.lines[0].rank is None
    assert small.lines[0].reasons[0].startswith("n/a (population of < 20): 6 clean and 6 backdoored")
    assert small.lines[0].value("balanced_accuracy") == 1.0  # printed all the same
    partial = only([*population("careful", 24, 0), *population("jumpy", 24, 12)[:-1]])
    assert "1 of 48 models not judged" in line(partial, "jumpy").reasons


# ------------------------------------------------------------------------------------------------ names, output, form


def test_names_tell_namesakes_apart() -> None:
    short, long = named("pgd", steps=10, alpha=0.1), named("pgd", steps=100, alpha=0.1)
    wrapped = named("eot", looks=5, attack=short)
    assert set(display([short, long, wrapped, None]).values()) == {
        "pgd (steps=10)",
        "pgd (steps=100)",
        "eot(pgd)",
        "none",
    }
    a, b = named("net", weights="a" * 30 + "1"), named("net", weights="a" * 30 + "2")
    assert len(set(display([a, b]).values())) == 2


def shuffled(results: list[Result], seed: int) -> list[Result]:
    out = [Result.from_dict(json.loads(json.dumps(r.as_dict()))) for r in results]
    random.Random(seed).shuffle(out)
    return [*out, *out[:5]]  # a row may come twice


def test_the_order_of_rows_does_not_matter() -> None:
    results = make.everything()
    with make.controls(*make.PLANTED):
        boards, again = rank.boards(results), rank.boards(shuffled(results, 1))
        assert rank.uncaught_controls(results) == []
    assert boards == again
    assert export.as_json(boards) == export.as_json(again)
    assert len({b.id for b in boards}) == len(boards) == 6
    assert {k for b in boards for x in b.lines for k in x.keys} == {r.cell.key for r in results}


def test_json_csv_and_markdown_hold_the_same_numbers() -> None:
    with make.controls(*make.PLANTED):
        boards = rank.boards(make.everything())
    data = json.loads(export.as_json(boards))["boards"]
    table = list(csv.DictReader(io.StringIO(export.as_csv(boards))))
    sections = export.as_markdown(boards).split("\n## ")
    assert len(table) == sum(len(b["lines"]) for b in data)
    assert len(sections) == len(data)
    lines = iter(table)
    for board, section in zip(data, sections, strict=True):
        shown = [r for r in section.splitlines() if r.startswith("| ")][1:]
        assert len(shown) == len(board["lines"])
        for entry, text in zip(board["lines"], shown, strict=True):
            row = next(lines)
            assert row["board"] == board["id"]
            assert [row["rank_best"], row["rank_worst"]] == [str(r) for r in entry["rank"] or ("", "")]
            assert all(row[name] == value for name, value in entry["names"].items())
            for name, number in entry["numbers"].items():
                assert isinstance(number["value"], (int, float))
                assert float(row[name]) == number["value"]
                if "low" in number:
                    assert [float(row[f"{name}.low"]), float(row[f"{name}.high"])] == [number["low"], number["high"]]
            primary = next(c for c in board["columns"] if c["id"] == board["primary"])
            value = entry["numbers"][board["primary"]]["value"]
            assert f"| {100 * value:.1f}" in text if primary["unit"] == "rate" else f"| {value:.3f}" in text


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


def test_strangers_names_do_no_harm_in_exports_and_terminals() -> None:
    evil = "=cmd|' /C calc'!A0\x1b[31m<b>[red]`x`|y"
    boards = rank.boards([attacked("autoattack", 90, model=evil)])
    assert next(csv.DictReader(io.StringIO(export.as_csv(boards))))["model"].startswith("'=cmd")
    cells = export.as_markdown(boards).splitlines()[-4].replace("\\|", "").split("|")
    assert len(cells) - 2 == len(boards[0].columns) + 4  # rank, model, defense, flags
    assert "<b>" not in export.as_markdown(boards)
    out = Console(width=200, file=io.StringIO(), force_terminal=False)
    tables.show(boards, out)
    text = out.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b" not in text
    assert "[red]" in text.replace("\n", "").replace(" ", "")


def test_terminal_tables_fit_in_a_hundred_columns() -> None:
    with make.controls(*make.PLANTED):
        boards = rank.boards(make.everything())
    out = Console(width=100, file=io.StringIO(), force_terminal=False)
    tables.show(boards, out)
    text = out.file.getvalue()  # type: ignore[attr-defined]
    assert max(len(row) for row in text.splitlines()) <= 100
    assert "…" not in text
    for word in (
        "49.0 [42–56]",
        "1-3",
        "adversarial_training",
        "noop_attack",
        "control: resnet18 / logit_scaling: caught",
    ):
        assert word in text
    tables.show([], out)
    assert "No rows yet" in out.file.getvalue()  # type: ignore[attr-defined]


def test_an_uncaught_control_is_loud_in_the_terminal() -> None:
    with make.controls(("defense", "logit_scaling")):
        boards = rank.boards(scaled(160, 4, []))
    out = Console(width=100, file=io.StringIO(), force_terminal=False)
    tables.show(boards, out)
    assert "NOT CAUGHT: no check fired on it" in out.file.getvalue()  # type: ignore[attr-defined]


def test_nothing_here_imports_torch() -> None:
    code = """
import sys
from siegebench.leaderboard import export, page, rank, stats, tables, wandb_mirror
from tests import rows
results = rows.everything()
boards = rank.boards(results)
page.render(boards, results), export.as_csv(boards), rank.uncaught_controls(results)
heavy = {"torch", "timm", "wandb", "sklearn"} & set(sys.modules)
assert not heavy, heavy
"""
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
