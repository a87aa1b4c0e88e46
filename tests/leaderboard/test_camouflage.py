"""Boards of textures: ranked under the strongest one, controls beside it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from siegebench.leaderboard import page, plots, rank

from siegebench.cells import Cell, Result, bits, pack, rate
from tests import rows as make

VEHICLES = 100  # the first images of the slice


def row(
    texture: str, seen: int, *, model: str = "resnet", surrogates: list[str] | None = None, others: int = 0,
    grey: int = 90, **parameters: Any,
) -> Result:  # fmt: skip
    """A finished row: `seen` vehicles and `others` other things are answered as vehicles."""
    hit = make.outcome(seen) | make.outcome(others, start=VEHICLES)
    views = np.arange(make.N)
    return make.checked(Result(
        cell=Cell(
            track="camouflage", data=make.DATA, model=make.named(model), defense=make.named("none"),
            camouflage=make.named(texture, **parameters), stage={"scenes": 8, "ss": 4},
            surrogates=None if surrogates is None else [make.named(s) for s in surrogates],
        ),
        metrics={
            "clean_acc": rate(180, make.N), "vehicle_acc": rate(seen, VEHICLES),
            "vehicle_acc_grey": rate(grey, VEHICLES), "other_acc": rate(VEHICLES - others, VEHICLES),
            "covered": {"value": parameters.get("covered", 1.0)}, "vehicle_conf": {"value": 0.5},
            "vehicle_acc_azimuth@45": rate(seen // 2, VEHICLES // 2),
        },
        samples={
            "n": make.N, "clean": pack(make.outcome(180)), "seen": pack(hit), "vehicle": pack(make.outcome(VEHICLES)),
            "seen_grey": pack(make.outcome(grey)), **bits("azimuth", np.where(views < 20, 7, 3)),
            **bits("pitch", 0 * views),
            **bits("distance", 4 + 0 * views),
        },
    ))  # fmt: skip


def test_ranked_under_the_strongest_texture_with_controls_beside_it() -> None:
    (board,) = rank.boards([
        row("active", 40), row("dta", 55), row("flat", 90), row("random_texture", 80, draw=0),
        row("random_texture", 70, draw=1), row("active", 65, surrogates=["vgg"]),
        row("active", 85, model="vgg"), row("flat", 92, model="vgg"), row("random_texture", 60, model="vgg", draw=0),
    ])  # fmt: skip
    vgg, resnet = board.lines
    assert board.facts["scenes"] == "200"
    assert (resnet.names["model"], resnet.value("vehicle_acc"), resnet.texts["worst_texture"]) == (
        "resnet",
        0.4,
        "active",
    )
    assert resnet.value("random_acc") == 0.7
    assert resnet.value("transfer_acc") == resnet.value("transfer:active from vgg") == 0.65
    assert resnet.value("control:flat") == 0.9
    assert vgg.value("vehicle_acc") == 0.6  # a control counts: an attacker could use it
    assert [f.id for f in vgg.flags] == ["control_beats_texture"]
    assert not resnet.flags
    assert (vgg.rank, resnet.rank) == ((1, 1), (2, 2))
    assert resnet.texts["worst_view"] == "rear, pitch 0+, 8+ m"


def test_a_victim_that_sees_nothing_or_everything_is_not_ranked() -> None:
    (board,) = rank.boards([
        row("active", 10, grey=30), row("active", 90, model="vgg", others=80), row("flat", 90, model="dn"),
    ])  # fmt: skip
    told = {line.names["model"]: line.reasons for line in board.lines}
    assert told["resnet"] == ("sees fewer than half of the grey vehicles",)
    assert told["vgg"] == ("classifies most other things as vehicles",)
    assert told["dn"] == ("no texture was completed",)


def test_the_curve_over_the_covered_area() -> None:
    (board,) = rank.boards([
        row("area_camouflage", 80, covered=0.125), row("area_camouflage", 60, covered=0.5), row("area_camouflage", 30),
        row("flat", 90),
    ])  # fmt: skip
    (line,) = board.lines
    assert [line.value(f"area@{k}") for k in (12, 25, 50, 100)] == [0.8, None, 0.6, 0.3]
    assert board.figure.start == ("vehicle_acc_grey", "grey")  # type: ignore[union-attr]


def test_the_confidence_from_all_sides_beside_that_of_grey_paint() -> None:
    def around(texture: str, front: float, left: float, **parameters: Any) -> Result:
        found = row(texture, 50, **parameters)
        scores = {0: front, 90: left, 180: 0.0, 270: 0.0}
        told = {f"vehicle_conf_azimuth@{k}": {"value": v} for k, v in scores.items()}
        return make.checked(replace(found, metrics={**found.metrics, **told}))

    rows = [around("active", 0.5, 1.0), around("flat", 1.0, 1.0, covered=0.0)]
    (board,) = rank.boards(rows)
    (figure,) = plots.figures(board, lambda line: "#")
    assert figure is not None
    assert figure["kind"] == "polar"
    (line,) = figure["lines"]
    x, y = figure["centre"]
    (ahead, up), (left, down), rear, right = line["places"]  # each in the middle of its quarter: 45, 135 ... degrees
    reach = plots.RADIUS * 0.5**0.5
    assert (x - ahead, y - up) == pytest.approx((reach / 2, reach / 2), abs=0.1)
    assert (x - left, down - y) == pytest.approx((reach, reach), abs=0.1)
    assert rear == right == pytest.approx((x, y), abs=0.1)
    assert line["other"].split()[0] == f"{round(x - reach, 1)},{round(y - reach, 1)}"
    assert "polygon" in page.render([board], rows)
