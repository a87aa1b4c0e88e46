"""`siegebench recheck`: rows are drawn within a time, computed again and compared."""

from __future__ import annotations

import itertools
import json
import math
import re
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from siegebench import api
from siegebench.cells import Result
from siegebench.settings import Settings
from siegebench.store import Store
from siegebench.submissions import again
from tests import rows, runs


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A suite and the store of its rows, with an entry that is not bundled."""
    with runs.known(tmp_path / "site", monkeypatch):
        suite = runs.suite(tmp_path / "mine.yaml")
        api.run(str(suite), Settings(root=str(tmp_path / "results"), threads=1, device="cpu"))
        yield suite, tmp_path / "results"


def test_rows_are_computed_again_and_a_false_one_is_found(measured: tuple[Path, Path], call: runs.Call) -> None:
    suite, store = measured
    code, out, err = call("recheck", "--store", store, "--file", suite, "--threads", 1)
    count = len(list(Store(store).rows()))
    assert (code, f"{count} of {count} rows computed again" in out, "0 different" in out) == (0, True, True), out + err
    assert f"{count} equal" in out
    path = next(p for p in (store / "rows").rglob("*.json") if "fgsm" in p.name)
    row = json.loads(path.read_text())
    row["metrics"]["robust_acc"] |= {"value": 0.999, "low": 0.995, "high": 1.0}
    path.write_text(json.dumps(row))
    code, out, err = call("recheck", "--store", store, "--file", suite, "--threads", 1)
    assert (code, "1 different" in out) == (1, True)
    assert "metrics.robust_acc: claimed 0.999, expected within [0.995, 1], found" in out
    row["cell"]["threat"]["eps"] *= 2  # a key that the suite does not have
    code, out, err = call("recheck", "--store", store)
    assert (code, "mine.yaml: this suite is not bundled; add --file" in out) == (2, True)
    assert "no row could be computed again" in err


def test_the_draw_keeps_to_its_time_and_depends_on_the_salt() -> None:
    suite = {"suite": {"name": "quickstart", "set": []}}
    many = [rows.attacked("pgd", n, defense=d) for n in (10, 20, 30) for d in ("none", "jpeg", "rnd")]
    for row in many:
        row.given.update(suite)
        training = 20.0 if row.cell.labels["defense"] == "none" else 1.0
        row.timing.update(seconds=4.0 + training, training=training)
    cost = again.costs(many)
    assert {cost[row.cell.key] for row in many if row.cell.labels["defense"] == "none"} == {4 + 20 + again.OVERHEAD}
    assert {cost[row.cell.key] for row in many if row.cell.labels["defense"] == "jpeg"} == {4 + 21 + again.OVERHEAD}
    for seconds in (0, 30, 50, 1e6):
        found = list(again.drawn(many, seconds, "a"))
        assert sum(cost[row.cell.key] for row in found) + again.PLANNING * bool(found) <= seconds or not found
        assert len(found) == {0: 0, 30: 0, 50: 1, 1e6: 9}[seconds]
    assert len({tuple(row.cell.key for row in again.drawn(many, 70, str(salt))) for salt in range(9)}) > 1


def test_what_must_be_trained_is_expected_although_no_seed_or_row_says_it() -> None:
    def of(row: Result, count: int = 200, images: str = "t") -> Result:
        data = {**rows.DATA, "train_digest": images * 64, "count": count}
        return replace(row, cell=replace(row.cell, data=data), timing={})

    first = of(rows.detected("strip", "badnets", 0.8))
    found = [
        of(rows.detected("scan", "badnets", 0.8, seed=1)), of(rows.detected("scan", "badnets", 0.8), count=20),
        of(rows.attacked("pgd", 10)), of(rows.attacked("pgd", 10, model=rows.named("published", sha256="f" * 64))),
    ]  # fmt: skip
    elsewhere = of(rows.attacked("pgd", 10), images="u")
    for row in (first, *found, elsewhere):
        row.timing.update(seconds=4.0, training=0.0)
    first.timing.update(seconds=34.0, training=30.0)
    cost = again.costs([first, *found, elsewhere])
    expected = [30.0, 30.0, 30.0, 0.0]  # another seed, fewer images, a network of which no row says it, a published one
    assert [cost[row.cell.key] - again.OVERHEAD - 4 for row in found] == expected
    assert cost[elsewhere.cell.key] == math.inf  # nothing was trained on these images
    # its training is counted twice: nobody knows how much of it was the detector's
    assert cost[first.cell.key] == 4 + 60 + again.OVERHEAD


def test_a_row_that_takes_longer_than_expected_is_stopped(
    measured: tuple[Path, Path], call: runs.Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite, store = measured
    count = len(list(Store(store).rows()))

    def compute(*_: object, **__: object) -> None:
        while True:
            time.sleep(0.01)

    with monkeypatch.context() as slow:
        slow.setattr(again, "compute", compute)
        slow.setattr(again, "OVERHEAD", 0.0)
        slow.setattr(again, "PLANNING", 0.0)
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in the background of a shell
        began = time.monotonic()
        try:
            code, out, err = call("recheck", "--store", store, "--file", suite, "--threads", 1, "--seconds", 10)
        finally:
            signal.signal(signal.SIGINT, before)
    assert time.monotonic() - began < 60
    told = re.search(r"\(seed 0\): stopped after \d+ s, when the time was over; about \d+ s were expected", out)
    assert (code, bool(told)) == (0, True), out + err
    assert f"0 of {count} rows computed again" in out


def test_a_row_that_would_end_too_late_is_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    many = [rows.attacked("pgd", 10 + i, seed=i) for i in range(4)]
    for row in many:
        row.given.update(suite={"name": "quickstart", "set": []})
        row.timing.update(seconds=17.5, training=0.0)
    clock, keys = itertools.count(0, 10), []
    plan = SimpleNamespace(cells=[row.cell for row in many])
    monkeypatch.setattr(again, "monotonic", lambda: next(clock))
    monkeypatch.setattr(again, "planned", lambda *_: (None, plan))

    def compute(suite: object, plan: object, wanted: list[str], *_: object, **__: object) -> dict[str, object]:
        keys.extend(wanted)
        return {row.cell.key: row for row in many}

    monkeypatch.setattr(again, "compute", compute)
    found = again.recheck(many, seconds=50)  # two are drawn, and after the first one less than 20 s are left
    assert len(list(again.drawn(many, 50, ""))) == 2
    assert (len(keys), len(found.agreed), found.left, found.stopped) == (1, 1, 3, {})


def test_ctrl_c_is_not_taken_for_the_end_of_the_time() -> None:
    with pytest.raises(KeyboardInterrupt), again.stopped_after(60):
        raise KeyboardInterrupt
    with again.stopped_after(60) as over:
        pass
    assert not over.is_set()


def test_suites_that_take_long_to_plan_leave_time_to_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("quickstart", "own", "try", "text", "studies", "medical", "skeleton", "spiking")
    many = [rows.attacked("pgd", 10 + i, defense="jpeg", seed=i) for i in range(len(names))]
    for row, name in zip(many, names, strict=True):
        row.given.update(suite={"name": name, "set": []})
        row.timing.update(seconds=0.0, training=0.0)
    clock, asked = itertools.count(0, 10), []

    def planned(origin: dict[str, str], file: Path | None = None) -> tuple[None, SimpleNamespace]:
        asked.append(origin["name"])
        return None, SimpleNamespace(cells=[row.cell for row in many])

    monkeypatch.setattr(again, "monotonic", lambda: next(clock))  # ten seconds between two looks at the clock
    monkeypatch.setattr(again, "planned", planned)
    monkeypatch.setattr(again, "compute", lambda suite, plan, keys, *_, **__: {r.cell.key: r for r in many})
    found = again.recheck(many, seconds=100)
    assert 0 < len(asked) < len(names)
    done = {row.given["suite"]["name"] for row in many if row.cell.key in found.agreed}
    assert done
    assert done <= set(asked)
