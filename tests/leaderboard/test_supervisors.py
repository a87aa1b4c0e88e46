"""Detectors of adversarial images are ranked by what every attack leaves; all kinds of inputs stand side by side."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from siegebench.leaderboard import rank
from siegebench.leaderboard.board import Board

from siegebench.cells import Cell, Result, pack, rate
from siegebench.stats import auroc, auroc_interval
from tests.rows import DATA, LINF, N, checked, named, outcome

from .boards import line

KINDS: dict[str, dict[str, Any]] = {
    "pgd": {"attack": named("pgd"), "threat": LINF},
    "aware": {"attack": named("orthogonal_pgd"), "threat": LINF},
    "fog": {"corruption": named("fog"), "severities": [3]},
    "other": {"inputs": {"kind": "ood", "data": {**DATA, "name": "clothes"}}},
    "between": {"inputs": {"kind": "ambiguous", "source": named("ambiguess"), "split": "test"}},
}


MORE = {name: {"attack": named(name), "threat": LINF} for name in ("cw", "fab")}


def row(detector: str, kind: str, value: float, safe: np.ndarray[Any, Any] | None = None) -> Result:
    metrics: dict[str, Any] = {"auroc": {"value": value, "low": value - 0.02, "high": min(1.0, value + 0.02)}}
    samples: dict[str, Any] = {}
    if safe is not None:
        metrics |= {"robust_acc_fpr@5": rate(float(safe.sum()), N), "clean_acc_fpr@5": rate(170, N)}
        samples = {"n": N, "clean": pack(outcome(180)), "safe@5": pack(safe)}
    cell = Cell(
        track="input_detection",
        data=DATA,
        model=named("resnet", train_seed=0),
        detector=named(detector),
        **{**KINDS, **MORE}[kind],
    )
    return checked(Result(cell=cell, metrics=metrics, samples=samples))


def board(results: list[Result], title: str) -> Board:
    (found,) = (b for b in rank.boards(results) if b.title.startswith(title))
    return found


def test_the_worst_attack_of_each_image_decides() -> None:
    results = [
        row("careful", "pgd", 0.7, outcome(150)), row("careful", "aware", 0.6, outcome(150, start=20)),
        row("vain", "pgd", 0.99, outcome(200)), row("vain", "aware", 0.1, outcome(10)),
        row("untested", "pgd", 0.9, outcome(190)),
    ]  # fmt: skip
    found = board(results, "Input detection")
    assert found.primary == "robust_acc_fpr@5"
    careful, vain, untested = (line(found, name) for name in ("careful", "vain", "untested"))
    assert careful.value(found.primary) == pytest.approx(130 / N)  # safe under both attacks
    assert vain.value(found.primary) == pytest.approx(10 / N)
    assert vain.value("robust_static") == 1.0
    assert (careful.place, vain.place) == ("1", "2")  # although the AUROC of the other is higher under pgd
    assert untested.rank is None
    assert any("no attack that knows the detector was run; add one of" in reason for reason in untested.reasons)


def test_attacks_that_know_the_detector_must_not_be_weaker_than_others() -> None:
    results = [
        row("honest", "pgd", 0.7, outcome(150)), row("honest", "aware", 0.6, outcome(160)),
        row("odd", "pgd", 0.7, outcome(100)), row("odd", "aware", 0.6, outcome(140)),
    ]  # fmt: skip
    found = board(results, "Input detection")
    honest, odd = line(found, "honest"), line(found, "odd")
    assert (honest.flags, [f.id for f in odd.flags]) == ((), ["knowing_is_weaker"])
    assert (honest.place, odd.place) == ("1", "")
    assert "check failed: knowing_is_weaker" in odd.reasons


def test_a_detector_of_other_data_must_beat_the_pixels() -> None:
    results = [row("energy", "other", 0.8), row("entropy", "other", 0.95), row("pixel_statistics", "other", 0.9)]
    found = board(results, "Input detection")
    flags = {x.title: [(f.id, f.severity) for f in x.flags] for x in found.lines}
    assert flags == {"energy": [("codec", "flag")], "entropy": [], "pixel_statistics": []}
    assert not [x.flags for x in board([*results[:2]], "Input detection").lines if x.flags]
    near = [row("energy", "between", 0.8), row("pixel_statistics", "between", 0.9)]
    assert not [x.flags for x in board(near, "Input detection").lines if x.flags]


def test_kinds_of_inputs_stand_side_by_side() -> None:
    values = {"soft": (0.9, 0.4, 0.8, 0.6, 0.95), "far": (0.8, 0.6, 0.9, 0.99, 0.55)}
    results = [
        row(detector, kind, v, outcome(100) if kind in ("pgd", "aware") else None)
        for detector, found in values.items()
        for kind, v in zip(KINDS, found, strict=True)
    ]
    found = board(results, "Detectors by kind of input")
    soft, far = line(found, "soft"), line(found, "far")
    assert soft.value("auroc") == pytest.approx(np.mean(values["soft"]))
    assert far.value("auroc_min") == 0.55
    assert soft.value("mean_rank") == pytest.approx((1 + 2 + 2 + 2 + 1) / 5)
    assert {c.id for c in found.columns if c.group == "kind"} == {
        "kind:adversarial images", "kind:adversarial images, known detector", "kind:ambiguous images",
        "kind:corrupted images", "kind:images of other data",
    }  # fmt: skip
    counted = [key for b in rank.boards(results) for x in b.lines for key in x.keys]
    assert sorted(counted) == sorted(r.cell.key for r in results)
    missing = board(results[:-1], "Detectors by kind of input")
    assert line(missing, "far").reasons == ("not measured on ambiguous images",)


def test_ranks_follow_the_mean_over_the_kinds_not_over_the_inputs() -> None:
    values = {"many": (0.9, 0.9, 0.9, 0.6), "even": (0.75, 0.75, 0.75, 0.85)}  # the first leads on three of four
    results = [
        row(detector, kind, v)
        for detector, found in values.items()
        for kind, v in zip(("pgd", "cw", "fab", "other"), found, strict=True)
    ]
    found = board(results, "Detectors by kind of input")
    assert [(x.names["detector"], x.place) for x in found.lines] == [("even", "1"), ("many", "2")]
    results[0].flags.append({"id": "nan", "severity": "fail", "evidence": "planted"})
    assert line(board(results, "Detectors by kind of input"), "many").reasons == ("check failed: nan",)


def test_boards_of_other_inputs_stay_theirs_when_all_rows_failed() -> None:
    failed = [row("soft", kind, 0.5) for kind in ("fog", "pgd")]
    for result in failed:
        result.status, result.metrics, result.error = "error", {}, {"type": "ValueError", "message": "planted"}
    assert board(failed, "Input detection: corrupted").primary == "auroc"
    assert board(failed, "Input detection: linf").primary == "robust_acc_fpr@5"
    assert all(x.rank is None for x in board(failed, "Detectors by kind").lines)


def test_clean_accuracy_is_the_mean_over_the_seeds() -> None:
    safe = outcome(150)
    one, two = row("soft", "aware", 0.6, safe), row("soft", "aware", 0.6, safe)
    two = replace(two, cell=replace(two.cell, seed=1), metrics={**two.metrics, "clean_acc_fpr@5": rate(150, N)})
    found = board([one, two], "Input detection").lines[0]
    assert found.value("clean_acc_fpr@5") == pytest.approx(160 / N)


def test_intervals_of_the_auroc_cover_the_truth() -> None:
    rng, inside = np.random.default_rng(0), 0
    for _ in range(200):
        low, high = auroc_interval(positive=rng.normal(1, 1, 40), negative=rng.normal(0, 1, 60))
        inside += low <= 0.7602 <= high  # of two normal distributions that are one apart
    assert 180 <= inside <= 199
    perfect, clean = np.arange(10.0) + 20, np.arange(15.0)
    assert auroc(positive=perfect, negative=clean) == 1.0
    low, high = auroc_interval(positive=perfect, negative=clean)
    assert 0.6 < low < 0.8
    assert high == 1.0
