"""Runs of small suites: what is done is not done again, what fails fails alone, how it is run changes nothing."""

from __future__ import annotations

import json
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file

from siegebench import api, evaluation, executors, registry
from siegebench.cells import Cell, Result, unpack
from siegebench.config import load_suite
from siegebench.errors import ConfigError
from siegebench.executors import executor
from siegebench.plan import plan
from siegebench.store import Store
from siegebench.tracks import TRACKS
from siegebench.workspace import Settings
from tests import runs
from tests.outsider.tiny import net


@pytest.fixture(scope="module", autouse=True)
def _outsider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    with runs.known(tmp_path_factory.mktemp("site"), patch):
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose artifacts other stores copy, so that the model is trained once."""
    folder = tmp_path_factory.mktemp("trained")
    api.run(load_suite(str(runs.suite(folder / "s.yaml"))), Settings(root=str(folder / "store"), threads=1))
    return folder / "store"


@pytest.fixture
def store(trained: Path, tmp_path: Path) -> Path:
    return runs.with_artifacts(trained, tmp_path / "store")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    """The cells that are computed in this process."""
    seen: list[Cell] = []
    real = evaluation.evaluate

    def evaluate(cell: Cell, *rest: Any, **more: Any) -> Any:
        seen.append(cell)
        return real(cell, *rest, **more)

    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    return seen


def go(file: Path, store: Path, **settings: Any) -> api.Outcome:
    how = {k: settings.pop(k) for k in ("how", "slots") if k in settings}
    return api.run(load_suite(str(file)), Settings(**{"root": str(store), "threads": 1, **settings}), **how)


def files(store: Path) -> dict[Path, tuple[int, bytes]]:
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in store.rglob("*") if p.is_file() and p.suffix != ".lock"}


# ------------------------------------------------------------------------------------------------------- second runs


def test_a_second_run_computes_nothing_and_touches_nothing(store: Path, tmp_path: Path, counted: list[Cell]) -> None:
    file = runs.suite(tmp_path / "s.yaml", runs.board(attacks=["fgsm", "pgd"]))
    first = go(file, store)
    assert first.ended == {"ok": 3}
    assert len(counted) == 3
    before = files(store)
    second = go(file, store)
    assert second.ended == {"cached": 3}
    assert len(counted) == 3
    assert files(store) == before
    assert [r.as_dict() for r in second.results] == [r.as_dict() for r in first.results]


def test_only_what_is_new_is_computed(store: Path, tmp_path: Path, counted: list[Cell]) -> None:
    go(runs.suite(tmp_path / "s.yaml"), store)
    done = len(counted)
    more = runs.board(attacks=["fgsm", {"name": "fgsm", "loss": "margin"}], threats=[
        {"norm": "linf", "eps": "16/255"}, {"norm": "linf", "eps": "17/255"},
    ])  # fmt: skip
    more["attacks"] = ["fgsm", {"name": "pgd", "steps": 2}]
    outcome = go(runs.suite(tmp_path / "s.yaml", more), store)
    assert outcome.ended == {"cached": 2, "ok": 4}
    assert len(counted) == done + 4


def test_an_attack_that_sees_nothing_is_flagged(store: Path, tmp_path: Path) -> None:
    scaled = {"name": "logit_scaling", "factor": 1e7}
    board = runs.board(defenses=["none", scaled], attacks=[{"name": "pgd", "steps": 3}])
    rows = [r for r in go(runs.suite(tmp_path / "s.yaml", board), store, how="serial").results if r.cell.attack]
    blind = {(r.cell.defense or {})["name"] for r in rows if any(f["id"] == "blind_attack" for f in r.flags)
             and (r.cell.attack or {})["name"] == "pgd" and not r.cell.adaptive}  # fmt: skip
    assert blind == {"logit_scaling"}


def test_two_boards_with_the_same_cell_share_it(store: Path, tmp_path: Path, counted: list[Cell]) -> None:
    go(runs.suite(tmp_path / "s.yaml", runs.board(), runs.board(attacks=["fgsm", "pgd"])), store)
    assert len(counted) == 3
    assert len(runs.numbers(store)) == 3


def test_a_damaged_row_is_computed_again_and_comes_out_the_same(store: Path, tmp_path: Path) -> None:
    file = runs.suite(tmp_path / "s.yaml", runs.board(attacks=["fgsm", "pgd"]))
    go(file, store)
    before = runs.numbers(store)
    path = next((store / "rows").rglob("pgd-*.json"))
    path.write_bytes(path.read_bytes()[:100])
    outcome = go(file, store)
    assert outcome.ended == {"cached": 2, "ok": 1}
    assert runs.numbers(store) == before
    assert path.with_suffix(".corrupt").exists()


def test_a_damaged_artifact_is_made_again_and_comes_out_the_same(store: Path, tmp_path: Path) -> None:
    file = runs.suite(tmp_path / "s.yaml")
    go(file, store)
    before = runs.numbers(store)
    shutil.rmtree(store / "rows")
    (weights,) = (store / "artifacts").glob("*.safetensors")
    good = weights.read_bytes()
    weights.write_bytes(good[:-100])
    assert go(file, store).ended == {"ok": 2}
    assert runs.numbers(store) == before
    assert weights.read_bytes() == good
    assert json.loads(weights.with_suffix(".json").read_text())["kind"] == "clean"


# ---------------------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize("how", ["serial", "local"])
def test_what_fails_fails_alone(how: str, store: Path, tmp_path: Path) -> None:
    step: Callable[..., dict[str, Any]] = lambda ends: {"name": "outsider/step", "ends": ends}  # noqa: E731
    attacks = ["fgsm", *map(step, ("raises", "exits", "too far")), "pgd"]
    checks = [{"name": "outsider/quiet", "odd": True}, "outsider/quiet"]
    file = runs.suite(tmp_path / "s.yaml", runs.board(attacks=attacks, measures=checks))
    outcome = go(file, store, how=how, slots=1)
    assert outcome.ended == {"ok": 3, "error": 4}
    assert outcome.failed == 4
    errors = {(r.error or {})["type"]: r for r in outcome.results if r.status == "error"}
    assert set(errors) == {"RuntimeError", "SystemExit", "ContractError", "TypeError"}
    fell = errors["RuntimeError"]
    assert fell.error is not None
    assert fell.error["message"] == "step  fell over"
    assert fell.error["traceback"][-1].startswith("outsider/step.py:")
    assert str(runs.ROOT) not in json.dumps(fell.as_dict()), "a path of this machine is in the row"
    assert errors["ContractError"].flags[0]["id"] == "contract_broken"
    if how == "local":
        return
    before = files(store)
    again = go(file, store, how=how, slots=1)
    assert again.ended == {"cached": 3, "error": 4}
    assert {r.attempts for r in again.results if r.status == "error"} == {2}
    assert {r.attempts for r in again.results if r.status == "ok"} == {1}
    ok = [Store(store).path(r.cell) for r in again.results if r.status == "ok"]
    assert all(files(store)[p] == before[p] for p in ok)


def test_a_failure_that_is_repaired_is_replaced(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = runs.suite(tmp_path / "s.yaml")
    with monkeypatch.context() as patch:
        patch.setattr(TRACKS["white_box"], "measure", staticmethod(lambda *_: 1 / 0))
        assert go(file, store).ended == {"error": 2}
        assert go(file, store).ended == {"error": 2}
    outcome = go(file, store)
    assert outcome.ended == {"ok": 2}
    assert [r.attempts for r in outcome.results] == [3, 3]
    assert [r.error for r in outcome.results] == [None, None]
    for row in Store(store).rows():
        assert [(e["type"], e["message"]) for e in row.errors] == [("ZeroDivisionError", "division by zero")] * 2
        assert row.errors[0]["when"] <= row.errors[1]["when"] <= row.timing["started"] <= row.timing["ended"]


def test_a_row_says_what_the_suite_gave_and_when_it_was_made(store: Path, tmp_path: Path) -> None:
    weights = {"name": runs.MODEL, "checkpoint": str(tmp_path / "w.safetensors")}
    save_file(net(10, api.load_data("digits", count=1).size).state_dict(), weights["checkpoint"])
    eot = {"name": "eot", "looks": 2, "attack": {"name": "pgd", "steps": 3, "step": "1/255"}}
    file = runs.suite(tmp_path / "s.yaml", runs.board(attacks=[eot], measures=[]), models=[weights])
    begun = evaluation.now()
    assert go(file, store, device="cpu").ended == {"ok": 1}
    (row,) = [r for r in Store(store).rows() if r.given.get("attack", {}).get("name") == "eot"]
    assert row.given == {
        "model": {"name": runs.MODEL}, "defense": {"name": "none"}, "attack": eot, "data": {"name": "digits"},
        "suite": {"name": "s.yaml", "set": []},
    }  # fmt: skip
    assert begun <= row.timing["started"] <= row.timing["ended"] <= evaluation.now()
    assert row.timing["seconds"] > 0
    assert row.env["device"] == (platform.machine() or "cpu")
    assert str(tmp_path) not in json.dumps(row.as_dict())


def test_a_row_that_no_reader_would_take_becomes_an_error(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flag = {"id": "odd", "severity": "splendid", "evidence": "half a letter: \ud800"}
    monkeypatch.setattr(TRACKS["white_box"], "measure", staticmethod(lambda cell, ws: Result(cell=cell, flags=[flag])))
    assert go(runs.suite(tmp_path / "s.yaml"), store).ended == {"error": 2}
    for row in Store(store).rows():
        assert row.error is not None
        assert "flags.0.evidence" in row.error["message"] or "UnicodeEncodeError" in row.error["type"]


def test_a_worker_that_dies_loses_only_its_cell(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors.slots, "MAX_CRASHES", 1)  # starting a worker takes seconds
    log = tmp_path / "log"
    attacks = [
        "fgsm",
        {"name": "outsider/step", "ends": "dies", "tag": "always", "log": str(log)},
        {"name": "outsider/step", "ends": "dies once", "tag": "once", "log": str(log)},
        "pgd",
    ]
    file = runs.suite(tmp_path / "s.yaml", runs.board(attacks=attacks))
    outcome = go(file, store, how="local", slots=1)
    assert outcome.ended == {"ok": 4, "crashed": 1}
    assert sorted(log.read_text().split()) == ["always"] * 2 + ["once"] * 2
    (bad,) = [r for r in outcome.results if r.status == "error"]
    assert bad.cell.attack is not None
    assert bad.cell.attack["tag"] == "always"
    assert bad.error is not None
    assert "the worker process died 2 times" in bad.error["message"]
    assert bad.attempts == 2


def test_an_unknown_executor_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown executor 'loacl'. Did you mean local"):
        executor("loacl")


# ------------------------------------------------------------------------------------- how it is run changes nothing

ATTACKS: list[Any] = [
    "fgsm",
    {"name": "pgd", "steps": 5, "restarts": 2},
    {"name": "apgd", "steps": 6},
    {"name": "fab", "steps": 4, "targets": 3},
    {"name": "cw", "steps": 10, "searches": 2},
    {"name": "eot", "attack": {"name": "pgd", "steps": 3}, "looks": 2},
    "outsider/step",
]


def _everything(path: Path) -> Path:
    """White-box and query attacks, in one norm also on a randomised victim."""
    common = {"defenses": ["none", {"name": "outsider/noise", "sigma": 0.2}]}
    known = registry.names("attack")
    attacks = [a for a in ATTACKS if (a if isinstance(a, str) else a["name"]) in known]
    assert len(attacks) >= 6
    in_both = [a for a in attacks if not (isinstance(a, dict) and a["name"] == "cw")]
    white = runs.board(attacks=in_both, threats=[{"norm": "linf", "eps": "24/255"}], **common)
    other = runs.board(attacks=attacks, threats=[{"norm": "l2", "eps": 1.5}])
    query = {
        "track": "query",
        "attacks": [{"name": "square", "queries": 40}],
        "threats": [{"norm": "linf", "eps": "24/255"}],
        "queries": 40,
        **common,
    }
    return runs.suite(path, white, other, query, data={"set": "digits", "count": 64})


@pytest.fixture(scope="module")
def reference(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """(suite, its numbers in float64, serial, 64 images a batch)"""
    folder = tmp_path_factory.mktemp("reference")
    file = _everything(folder / "s.yaml")
    store = runs.with_artifacts(trained, folder / "store")
    outcome = go(file, store, batch=64, dtype="float64")
    failed = [(r.cell.title, r.error) for r in outcome.results if r.status != "ok"]
    assert not failed
    found = runs.numbers(store)
    rates = [row["metrics"]["robust_acc"]["value"] for row in found.values() if "robust_acc" in row["metrics"]]
    assert len(rates) >= 2 * 7
    assert len({r for r in rates if 0 < r < 0.9}) >= 4, "attacks that all win or all lose would hide a difference"
    return file, found


def flips(a: dict[str, Any], b: dict[str, Any]) -> tuple[int, int]:
    """(outcomes that differ, outcomes) over all rows and all per-sample vectors."""
    assert a.keys() == b.keys()
    different = total = 0
    for key, row in a.items():
        n = row["samples"].get("n", 0)
        for name, packed in row["samples"].items():
            if name != "n":
                different += int((unpack(packed, n) != unpack(b[key]["samples"][name], n)).sum())
                total += n
    return different, total


def same(a: dict[str, Any], b: dict[str, Any]) -> None:
    """Every outcome, count and rate is the same; distances up to rounding."""
    assert flips(a, b)[0] == 0
    for key, row in a.items():
        other = b[key]
        assert row["status"] == other["status"]
        assert row["counts"] == other["counts"], row["labels"]
        for name, values in row["arrays"].items():
            np.testing.assert_allclose(values, other["arrays"][name], rtol=1e-6, atol=1e-9, err_msg=str(row["labels"]))
        for name, value in row["metrics"].items():
            assert value == pytest.approx(other["metrics"][name], rel=1e-5), (row["labels"], name)


def test_the_size_of_a_batch_does_not_matter(reference: tuple[Path, dict[str, Any]], store: Path) -> None:
    file, expected = reference
    go(file, store, batch=7, dtype="float64")
    same(expected, runs.numbers(store))


def test_the_executor_does_not_matter(reference: tuple[Path, dict[str, Any]], store: Path) -> None:
    file, expected = reference
    outcome = go(file, store, batch=64, dtype="float64", how="local", slots=2)
    assert set(outcome.ended) == {"ok"}
    same(expected, runs.numbers(store))


def test_in_single_precision_next_to_nothing_changes(
    reference: tuple[Path, dict[str, Any]], trained: Path, tmp_path: Path
) -> None:
    file, expected = reference
    found = []
    for batch in (64, 7):
        store = runs.with_artifacts(trained, tmp_path / f"store{batch}")
        go(file, store, batch=batch)
        found.append(runs.numbers(store))
    different, total = flips(found[0], found[1])
    assert different <= 0.01 * total
    different, total = flips(found[0], expected)
    assert different <= 0.01 * total


def test_the_order_of_cells_does_not_matter(store: Path, trained: Path, tmp_path: Path) -> None:
    file = runs.suite(
        tmp_path / "s.yaml", runs.board(attacks=["fgsm", {"name": "pgd", "steps": 3}, {"name": "apgd", "steps": 3}])
    )
    go(file, store)
    planned = plan(load_suite(str(file)))
    planned.cells.reverse()
    other = runs.with_artifacts(trained, tmp_path / "other")
    api.run(load_suite(str(file)), Settings(root=str(other), threads=1), planned=planned)
    assert runs.numbers(other) == runs.numbers(store)


def test_another_seed_gives_other_outcomes_and_the_same_seed_the_same(
    store: Path, trained: Path, tmp_path: Path
) -> None:
    threats = [{"norm": "linf", "eps": "3/255"}]
    board = runs.board(defenses=["outsider/noise"], threats=threats, seeds=[0, 1, 2], search="none")
    file = runs.suite(tmp_path / "s.yaml", board)
    go(file, store)
    rows = [r for r in runs.numbers(store).values() if r["samples"]]
    assert len({r["samples"]["robust"] for r in rows}) > 1, "the noise is the same for every seed"
    other = runs.with_artifacts(trained, tmp_path / "other")
    go(file, other)
    assert runs.numbers(other) == runs.numbers(store)


def test_a_model_trained_again_elsewhere_is_the_same_model(trained: Path, tmp_path: Path) -> None:
    go(runs.suite(tmp_path / "s.yaml"), tmp_path / "fresh")
    assert runs.numbers(tmp_path / "fresh") == runs.numbers(trained)
    (one,) = (trained / "artifacts").glob("*.safetensors")
    assert (tmp_path / "fresh" / "artifacts" / one.name).read_bytes() == one.read_bytes()


# ------------------------------------------------------------------------------------------------------- side by side


def test_two_runs_over_one_store_share_the_work(store: Path, tmp_path: Path) -> None:
    log, place = tmp_path / "log", tmp_path / "place"
    place.mkdir()  # however long one of them takes to start, the other waits there
    tags = [f"t{i}" for i in range(12)]
    step = {"name": "outsider/step", "seconds": 0.2, "log": str(log), "meets": str(place)}
    attacks = [{**step, "tag": t} for t in tags]
    file = runs.suite(tmp_path / "s.yaml", runs.board(attacks=attacks))
    both = [runs.start("run", file, "--store", store, "--executor", "serial", "--json", folder=tmp_path) for _ in "ab"]
    told = [p.communicate(timeout=240) for p in both]
    assert [p.returncode for p in both] == [0, 0], told
    assert sorted(log.read_text().split()) == sorted(tags), "a cell was computed twice, or never"
    assert len(runs.numbers(store)) == 13
    assert not runs.leftovers(store)
    shares = [len(re.findall(r"\] ok [^:]*: ", err)) for _, err in told]
    assert sum(shares) == 13
    assert min(shares) >= 2, f"one run waited for the other: {shares}"
    assert json.loads(told[0][0]) == json.loads(told[1][0])
