"""Boards of detectors: inputs, data sets and models are judged apart."""

from __future__ import annotations

from dataclasses import replace

import pytest
from siegebench.leaderboard import rank

from siegebench.cells import Result, rate
from tests.rows import detected, judged

from .boards import line, only


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


def test_what_a_detector_of_models_finds_where_its_threshold_is_set_on_the_clean_ones() -> None:
    """Twenty clean models with scores 0 to 19: two of them may score at least as high as what is found."""
    for score, found in ((17.0, 0.0), (17.5, 1.0), (30.0, 1.0), (-1.0, 0.0)):
        clean = [judged("d", i, False, float(i), True) for i in range(20)]
        board = only([*clean, *(judged("d", 1000 + i, True, score, True) for i in range(20))])
        assert line(board, "d").value("false_alarms") == 1.0  # at the published threshold
        assert line(board, "d").value("found_granted") == found


def test_models_whose_backdoor_was_not_learnt_do_not_count_in_the_population() -> None:
    def member(detector: str, i: int, bad: bool, flagged: bool, success: float | None = None) -> Result:
        row = judged(detector, i, bad, float(flagged), flagged)
        learnt = {} if success is None else {"attack_success": {"value": success}}
        return replace(row, metrics={**row.metrics, **learnt})

    clean = [member("strict", i, False, False) for i in range(24)]
    learnt = [member("strict", 1000 + i, True, True, 1.0) for i in range(22)]
    failed = [member("strict", 2000 + i, True, False, 0.0) for i in range(3)]
    board = only([*clean, *learnt, *failed])
    strict = line(board, "strict")
    assert board.facts["population"] == "24 clean, 22 backdoored"
    assert (strict.value("found"), strict.number("found").n) == (1.0, 22)
    assert strict.rank is not None
    assert any(note.startswith("Excluded, the attack itself failed") and "3 models" in note for note in board.notes)
    nothing = only(failed)
    assert nothing.lines[0].rank is None


def test_backdoors_that_know_a_detector_of_models_stand_in_a_column_of_their_own() -> None:
    def knowing(detector: str, backdoor: str, seed: int, flagged: bool, success: float = 1.0) -> Result:
        row = judged(detector, 5000 + seed, True, 0.0, flagged)
        cell = replace(row.cell, backdoor={**(row.cell.backdoor or {}), "name": backdoor}, adaptive=True, seed=seed)
        return replace(row, cell=cell, metrics={**row.metrics, "attack_success": {"value": success}})

    def population(detector: str) -> list[Result]:
        return [judged(detector, 1000 * bad + i, bad == 1, 3.0 * bad, bad == 1) for bad in (0, 1) for i in range(24)]

    usual = [*population("cleanse"), *population("arms"), *population("margin")]
    known = [knowing("cleanse", "wanet", i, i == 0) for i in range(4)]
    other = [knowing("cleanse", "tact", i, i < 3) for i in range(4)]
    failed = [knowing("arms", "wanet", i, False, success=0.0) for i in range(4)]
    half = [knowing("margin", "wanet", i, i == 0, success=float(i < 2)) for i in range(4)]
    board = only([*usual, *known, *other, *failed, *half])
    assert board.facts["population"] == "24 clean, 24 backdoored"
    cleanse, arms, margin = (line(board, name) for name in ("cleanse", "arms", "margin"))
    assert (cleanse.value("found"), cleanse.value("knowing_found")) == (1.0, 0.25)  # that of the attack found least
    assert {*cleanse.number("knowing_found").keys} == {r.cell.key for r in known}
    assert (margin.value("knowing_found"), margin.number("knowing_found").n) == (0.5, 2)  # two were not learnt
    assert arms.value("knowing_found") is None
    assert "failed" in next(mark.evidence for mark in arms.flags if mark.id == "no_knowing_attack")
    assert "knowing_found" in {column.id for column in board.columns}
    without = only(population("cleanse"))
    assert "knowing_found" not in {column.id for column in without.columns}
    assert "no_knowing_attack" in {mark.id for mark in without.lines[0].flags}
