"""Boards of backdoor defenses: averages, ties, attacks that failed themselves."""

from __future__ import annotations

from dataclasses import replace

import pytest

from siegebench.cells import Result
from tests import rows as make
from tests.rows import repaired

from .boards import line, only


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


def test_attacks_that_know_the_defense_stand_in_a_column_of_their_own() -> None:
    def knowing(row: Result) -> Result:
        return replace(row, cell=replace(row.cell, adaptive=True))

    usual = [repaired(d, "badnets", ca=0.9, asr=a) for d, a in (("none", 1.0), ("nab", 0.1), ("anp", 0.1))]
    known = [knowing(repaired("nab", b, ca=0.9, asr=a)) for b, a in (("stamped", 0.8), ("blended", 0.3))]
    failed = knowing(repaired("anp", "blended", ca=0.9, asr=0.0, asr0=0.1))
    board = only([*usual, *known, failed])
    assert line(board, "nab").value("fidelity") == line(board, "anp").value("fidelity")  # they do not enter the mean
    assert line(board, "nab").value("knowing_asr") == pytest.approx(0.8)
    assert line(board, "anp").value("knowing_asr") is None
    marks = {x.names["defense"]: [m.evidence for m in x.flags if m.id == "no_knowing_attack"] for x in board.lines}
    assert marks["nab"] == []
    assert "failed" in marks["anp"][0]
    assert "was run here" in marks["none"][0]
    shown = {key for x in board.lines for key in x.keys}
    assert shown == {r.cell.key for r in (*usual, *known, failed)}


def test_what_a_defense_rejects_is_averaged_over_the_attacks_that_measured_it() -> None:
    def rejecting(row: Result, b_rej: float) -> Result:
        told = {"c_rej": 0.1, "psr": 0.8, "b_rej": b_rej, "dsr": b_rej}
        return replace(row, metrics={**row.metrics, **{name: make.rate(v * 500, 500) for name, v in told.items()}})

    attacks = ("badnets", "wanet")
    results = [
        *(repaired("none", attack, ca=0.9, asr=1.0) for attack in attacks),
        *(rejecting(repaired("nab", a, ca=0.9, asr=0.1), v) for a, v in zip(attacks, (0.5, 1.0), strict=True)),
    ]
    board = only(results)
    assert line(board, "nab").value("b_rej") == pytest.approx(0.75)
    assert line(board, "none").value("b_rej") is None
    assert {"c_rej", "psr", "b_rej", "dsr"} <= {c.id for c in board.columns}
    assert "dsr" not in {c.id for c in only(results[:2]).columns}, "a column that nothing fills"
