"""`siegebench recheck`: rows are drawn within a time, computed again and compared."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from siegebench import api
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
        row.timing.update(seconds=4.0, training=20.0 if row.cell.labels["defense"] == "none" else 1.0)
    cost = again.costs(many)
    assert {cost[row.cell.key] for row in many if row.cell.labels["defense"] == "none"} == {4 + 20 + again.OVERHEAD}
    assert {cost[row.cell.key] for row in many if row.cell.labels["defense"] == "jpeg"} == {4 + 21 + again.OVERHEAD}
    for seconds in (0, 30, 50, 1e6):
        found = list(again.drawn(many, seconds, "a"))
        assert sum(cost[row.cell.key] for row in found) + again.PLANNING * bool(found) <= seconds or not found
        assert len(found) == {0: 0, 30: 0, 50: 1, 1e6: 9}[seconds]
    assert len({tuple(row.cell.key for row in again.drawn(many, 70, str(salt))) for salt in range(9)}) > 1


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
