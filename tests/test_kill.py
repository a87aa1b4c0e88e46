"""Killed at any moment, by any signal: nothing is lost, nothing is double, no file is torn, nobody stays behind."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from siegebench.store import Store
from tests import runs

if not Path("/proc/self/stat").exists():
    pytest.skip("needs /proc to look at processes", allow_module_level=True)

CELLS = 9  # attacks and one check


def _suite(folder: Path, seconds: float) -> Path:
    attacks: list[Any] = ["fgsm", {"name": "pgd", "steps": 3}]
    attacks += [{"name": "outsider/step", "tag": f"t{i}", "seconds": seconds} for i in range(6)]
    return runs.suite(
        folder / "s.yaml", runs.board(attacks=attacks, defenses=[{"name": "outsider/noise", "sigma": 0.05}])
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """(a store with the trained model, the numbers of a run that nobody disturbed)"""
    folder = tmp_path_factory.mktemp("whole")
    done = runs.run("run", _suite(folder, 0.3), "--store", "store", "--executor", "serial", folder=folder)
    assert done.returncode == 0, done.stderr
    found = runs.numbers(folder / "store")
    assert len(found) == CELLS
    return folder / "store", found


@pytest.fixture
def cleanup() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that a failed test must not leave running."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        if process.poll() is None:
            runs.kill_group(process)


def rows(store: Path) -> int:
    return len(list((store / "rows").rglob("*.json")))


def check_whole_rows(store: Path, expected: dict[str, Any]) -> int:
    """Every row that is there is whole and right; how many there are."""
    found = runs.numbers(store)  # raises for a torn file and for a cell with two rows
    for key, row in found.items():
        assert row == expected[key]
    return len(found)


def check_finished(store: Path, expected: dict[str, Any]) -> None:
    assert runs.numbers(store) == expected
    assert not runs.leftovers(store), "files of killed writers are left"
    assert {r.attempts for r in Store(store).rows()} == {1}


@pytest.mark.parametrize("how", ["serial", "local"])
def test_the_same_command_goes_on_after_kill_9(
    how: str, whole: tuple[Path, dict[str, Any]], tmp_path: Path, cleanup: list[subprocess.Popen[str]]
) -> None:
    trained, expected = whole
    store = runs.with_artifacts(trained, tmp_path / "store")
    words = ("run", _suite(tmp_path, 0.3), "--store", store, "--executor", how, "--slots", 1)
    process = runs.start(*words, folder=tmp_path)
    cleanup.append(process)
    runs.until(lambda: rows(store) >= 2, 120)
    runs.kill_group(process)
    kept = check_whole_rows(store, expected)
    assert 2 <= kept < CELLS, "the kill came too late to test anything"
    before = {p: p.read_bytes() for p in (store / "rows").rglob("*.json")}
    done = runs.run(*words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{CELLS} cells: {CELLS - kept} computed, {kept} stored before" in done.stderr
    assert all(p.read_bytes() == content for p, content in before.items()), "a finished row was written again"
    check_finished(store, expected)


def test_a_killed_parent_takes_its_workers_along_and_a_killed_worker_loses_nothing(
    whole: tuple[Path, dict[str, Any]], tmp_path: Path, cleanup: list[subprocess.Popen[str]]
) -> None:
    trained, expected = whole
    store = runs.with_artifacts(trained, tmp_path / "store")
    words = ("run", _suite(tmp_path, 0.5), "--store", store, "--executor", "local", "--slots", 2)
    # the workers alone, one after the other: the run itself goes on
    process = runs.start(*words, folder=tmp_path)
    cleanup.append(process)
    runs.until(lambda: rows(store) >= 1, 120)
    first = runs.workers(process.pid)
    assert len(first) == 2
    os.kill(first[0], signal.SIGKILL)
    new = runs.until(lambda: set(runs.workers(process.pid)) - set(first), 60)
    assert new
    # now the parent alone, while one worker is computing and the other one is still importing
    check_whole_rows(store, _slower(expected, store))
    left = runs.workers(process.pid)
    assert len(left) == 2
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    runs.until(lambda: not any(map(runs.alive, left)), 30)
    process.communicate()
    done = runs.run(*words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(runs.numbers(store)) == CELLS
    assert not runs.leftovers(store)


def _slower(expected: dict[str, Any], store: Path) -> dict[str, Any]:
    """The rows of a suite whose sleeping attacks sleep longer: other keys, so only their wholeness is compared."""
    return runs.numbers(store)


@pytest.mark.parametrize(
    ("how", "word"), [("local", signal.SIGINT), ("local", signal.SIGTERM), ("serial", signal.SIGINT)]
)
def test_ctrl_c_ends_a_run_with_one_line_and_130(
    how: str, word: signal.Signals, whole: tuple[Path, dict[str, Any]], tmp_path: Path,
    cleanup: list[subprocess.Popen[str]],
) -> None:  # fmt: skip
    trained, expected = whole
    store = runs.with_artifacts(trained, tmp_path / "store")
    words = ("run", _suite(tmp_path, 0.3), "--store", store, "--executor", how, "--slots", 1)
    process = runs.start(*words, folder=tmp_path)
    cleanup.append(process)
    if how == "local" and word == signal.SIGINT:
        runs.until(lambda: runs.workers(process.pid), 60)  # the worker has only begun to import
    else:
        runs.until(lambda: rows(store) >= 1, 120)
    left = runs.workers(process.pid)
    os.killpg(process.pid, word)  # as a terminal does: to everyone in the group
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    lines = [line for line in err.splitlines() if not re.match(r"\[\d+/\d+\] ok: ", line)]
    assert lines == ["interrupted; rows that are written stay, the same command goes on from here"]
    runs.until(lambda: not any(map(runs.alive, left)), 30)
    check_whole_rows(store, expected)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_kills_at_random_moments(
    whole: tuple[Path, dict[str, Any]], tmp_path: Path, cleanup: list[subprocess.Popen[str]]
) -> None:
    """From an empty store: 22 kills of the group, the parent or a worker, at any moment from the first import on."""
    _, expected = whole
    store, chance = tmp_path / "store", random.Random(3)
    words = ("run", _suite(tmp_path, 0.3), "--store", store, "--executor", "local", "--slots", 1)
    timer = time.monotonic()
    runs.run(*words[:2], "--store", tmp_path / "other", "--executor", "serial", "--dry-run", folder=tmp_path)
    usual = time.monotonic() - timer  # of starting and planning on this machine
    known: set[str] = set()
    for i in range(22):
        process = runs.start(*words, folder=tmp_path)
        cleanup.append(process)
        time.sleep(chance.uniform(0.2, 3.0) * usual)
        pids = runs.workers(process.pid)
        target = ("group", "parent", "worker")[i % 3]
        if process.poll() is None and target == "worker" and pids:
            os.kill(pids[0], signal.SIGKILL)
            time.sleep(chance.uniform(0.0, 1.0) * usual)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL) if target == "parent" else os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        runs.until(lambda p=pids: not any(map(runs.alive, p)), 30)
        process.communicate()
        check_whole_rows(store, expected)
        now = set(runs.numbers(store))
        assert known <= now, "a row that was there is gone"
        known = now
    done = runs.run(*words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    check_finished(store, expected)
    assert runs.run(*words, folder=tmp_path).stderr.endswith(f"{CELLS} cells: {CELLS} stored before\n")
