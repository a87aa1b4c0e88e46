"""Times and estimates of a long run."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from siegebench import progress
from siegebench.cells import Cell, Result
from siegebench.progress import Estimate, Progress, Training, about, clock
from siegebench.store import Store
from tests import rows

BASE = rows.attacked("pgd", 50).cell


def cell(attack: str = "pgd", steps: int = 20, count: int = 100, seed: int = 0) -> Cell:
    described = {"name": attack, "version": 1, "steps": steps}
    return replace(BASE, attack=described, data={**BASE.data, "count": count}, seed=seed)


def took(what: Cell, seconds: float, training: float = 0.0) -> Result:
    return Result(cell=what, timing={"seconds": seconds, "training": training})


def test_a_cell_takes_as_long_as_those_like_it() -> None:
    found = Estimate([], 1, [took(cell(steps=20), 10.0), took(cell(steps=200), 100.0), took(cell("fgsm"), 1.0)])
    assert found.of(cell(steps=20, seed=3)) == pytest.approx(10.0)
    assert found.of(cell(steps=200, count=10)) == pytest.approx(10.0), "a tenth of the images"
    assert found.of(cell("fgsm")) == pytest.approx(1.0)
    assert found.of(cell("square")) is None


def test_training_is_not_repeated_by_the_neighbours() -> None:
    assert Estimate([], 1, [took(cell(), 60.0, training=50.0)]).of(cell(seed=1)) == pytest.approx(10.0)


def test_what_is_left_is_shared_by_the_processes() -> None:
    cells = [cell(seed=i) for i in range(5)]
    found = Estimate(cells, 2)
    assert found.remaining() is None
    found.done(cells[0], 10.0)
    assert found.remaining() == pytest.approx(20.0)
    for other in cells[1:]:
        found.done(other, None)
    assert found.remaining() == 0


def test_every_line_says_how_long_a_cell_took(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    cells = [cell(seed=i) for i in range(3)]
    with Progress() as shown:
        shown.begin(cells, 1, {cells[0].key: "the first one"}, Store(tmp_path))
        for each in cells:
            shown.step(each, "started")
            now[0] += 100.0
            shown.step(each, "ok")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "[1/3] ok 1 min 40 s: the first one; about 3 min left"
    assert lines[2] == f"[3/3] ok 1 min 40 s: {cells[2].title}"
    other = cell("square")
    with Progress() as shown:
        shown.begin([cells[0], other], 1, {}, Store(tmp_path))
        shown.step(cells[0], "started")
        shown.step(cells[0], "ok")
    assert capsys.readouterr().err.splitlines()[0].endswith(" left (a guess for 1 cell)")


def test_training_tells_its_epochs_and_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    Training("net", 1000, 3)
    assert capsys.readouterr().err == "", "silent unless the command watches"
    with Progress():
        told = Training("net", 1000, 3)
        for epoch in (1, 2, 3):
            now[0] += 12.0
            told.epoch(epoch)
    assert capsys.readouterr().err.splitlines() == [
        "training net on 1,000 images, 3 epochs",
        "training net: epoch 1 of 3, about 24 s left",
        "training net: epoch 2 of 3, about 12 s left",
    ]
    assert progress.WATCHED not in __import__("os").environ


def test_durations_read_well() -> None:
    assert [clock(s) for s in (0.42, 9.96, 45.4, 200, 7500)] == ["0.4 s", "10 s", "45 s", "3 min 20 s", "2 h 5 min"]
    assert [about(s) for s in (0.2, 45.4, 100, 7500)] == ["1 s", "45 s", "2 min", "2 h 5 min"]
