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

from siegebench import api
from siegebench.config import load_suite
from siegebench.store import Store
from siegebench.workspace import Settings
from tests import runs

if not Path("/proc/self/stat").exists():
    pytest.skip("needs /proc to look at processes", allow_module_level=True)

CELLS = 9  # attacks, and one measure


def _suite(folder: Path) -> Path:
    attacks: list[Any] = ["fgsm", {"name": "pgd", "steps": 3}]
    attacks += [{"name": "outsider/step", "tag": f"t{i}", "seconds": 0.4} for i in range(6)]
    return runs.suite(
        folder / "s.yaml",
        runs.board(attacks=attacks, defenses=[{"name": "outsider/noise", "sigma": 0.05}], search="none"),
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """(a store with the trained model, the numbers of a run that nobody disturbed)"""
    folder = tmp_path_factory.mktemp("whole")
    patch = pytest.MonkeyPatch()
    with runs.known(folder / "site", patch):
        api.run(load_suite(str(_suite(folder))), Settings(root=str(folder / "store"), threads=1))
    found = runs.numbers(folder / "store")
    assert len(found) == CELLS
    assert {row["status"] for row in found.values()} == {"ok"}
    return folder / "store", found


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that a failed test must not leave running."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        if process.poll() is None:
            runs.kill_group(process)


def rows(store: Path) -> int:
    return len(list((store / "rows").rglob("*.json")))


def check(store: Path, expected: dict[str, Any]) -> set[str]:
    """Every row that is there is whole, single and right; their keys."""
    found = runs.numbers(store)  # raises for a torn file and for a cell with two rows
    for key, row in found.items():
        assert row == expected[key]
    return set(found)


def check_finished(store: Path, expected: dict[str, Any]) -> None:
    assert check(store, expected) == set(expected)
    assert not runs.leftovers(store), "files of killed writers are left"
    assert {r.attempts for r in Store(store).rows()} == {1}


def gone(pids: list[int]) -> None:
    """Wait until none of the processes is left."""
    runs.until(lambda: not any(map(runs.alive, pids)), 30)


def test_the_same_command_goes_on_after_every_kind_of_kill_9(
    whole: tuple[Path, dict[str, Any]], tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    trained, expected = whole
    store = runs.with_artifacts(trained, tmp_path / "store")
    words = ("run", _suite(tmp_path), "--store", store, "--executor", "local", "--slots", 1, "--threads", 1)

    # everybody at once
    process = runs.start(*words, folder=tmp_path)
    started.append(process)
    runs.until(lambda: rows(store) >= 2, 120)
    runs.kill_group(process)
    first = check(store, expected)
    assert 2 <= len(first) < CELLS - 3, "the kill came too late to test anything"
    files = {p: p.read_bytes() for p in (store / "rows").rglob("*.json")}

    # the worker alone: the run goes on with a new one; then the parent alone: its worker goes as well
    process = runs.start(*words, folder=tmp_path)
    started.append(process)
    runs.until(lambda: rows(store) > len(first), 120)
    (worker,) = runs.workers(process.pid)
    os.kill(worker, signal.SIGKILL)
    (new,) = runs.until(lambda: [p for p in runs.workers(process.pid) if p != worker], 60)
    assert process.poll() is None, "the run ended with its worker"
    time.sleep(0.5)  # the new worker imports
    process.kill()
    process.wait()
    gone([new])
    process.communicate()
    second = check(store, expected)
    assert first < second < set(expected)

    done = runs.run(*words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{CELLS} cells: {CELLS - len(second)} computed, {len(second)} stored before" in done.stderr
    assert all(p.read_bytes() == content for p, content in files.items()), "a finished row was written again"
    check_finished(store, expected)


@pytest.mark.slow
def test_a_worker_killed_in_a_cell_is_replaced_and_the_run_completes(
    whole: tuple[Path, dict[str, Any]], tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    trained, expected = whole
    store = runs.with_artifacts(trained, tmp_path / "store")
    words = ("run", _suite(tmp_path), "--store", store, "--executor", "local", "--slots", 1, "--threads", 1)
    process = runs.start(*words, folder=tmp_path)
    started.append(process)
    runs.until(lambda: rows(store) >= 1, 120)
    os.kill(runs.workers(process.pid)[0], signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert err.endswith(f"{CELLS} cells: {CELLS} computed\n")
    check_finished(store, expected)


@pytest.mark.parametrize(
    ("how", "word"),
    [
        ("local", signal.SIGINT),
        ("serial", signal.SIGINT),
        pytest.param("local", signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_ctrl_c_ends_a_run_with_one_line_and_130(
    how: str, word: signal.Signals, whole: tuple[Path, dict[str, Any]], tmp_path: Path,
    started: list[subprocess.Popen[str]],
) -> None:  # fmt: skip
    trained, expected = whole
    store = runs.with_artifacts(trained, tmp_path / "store")
    words = ("run", _suite(tmp_path), "--store", store, "--executor", how, "--slots", 1, "--threads", 1)
    process = runs.start(*words, folder=tmp_path)
    started.append(process)
    if how == "local" and word == signal.SIGINT:
        runs.until(lambda: runs.workers(process.pid), 60)  # the worker has only begun to import
    else:
        runs.until(lambda: rows(store) >= 1, 120)
    left = runs.workers(process.pid)
    os.killpg(process.pid, word)  # as a terminal does: to everyone in the group
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    lines = [line for line in err.splitlines() if not re.match(r"\[\d+/\d+\] ok [^:]*: ", line)]
    assert lines == ["interrupted; finished rows are kept, run the same command again to continue"]
    gone(left)
    check(store, expected)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_kills_at_random_moments(
    whole: tuple[Path, dict[str, Any]], tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    """From an empty store: 22 kills of the group, the parent or a worker, at any moment from the first import on."""
    _, expected = whole
    store, chance = tmp_path / "store", random.Random(3)
    words = ("run", _suite(tmp_path), "--store", store, "--executor", "local", "--slots", 1, "--threads", 1)
    timer = time.monotonic()
    runs.run(*words, "--dry-run", folder=tmp_path)
    usual = min(12.0, time.monotonic() - timer)  # of starting and planning on this machine
    known: set[str] = set()
    for i in range(22):
        process = runs.start(*words, folder=tmp_path)
        started.append(process)
        time.sleep(chance.uniform(0.1, 2.5) * usual)
        pids = runs.workers(process.pid)
        target = ("group", "parent", "worker")[i % 3]
        if process.poll() is None and target == "worker" and pids:
            os.kill(pids[0], signal.SIGKILL)
            time.sleep(chance.uniform(0.0, 1.0) * usual)
            pids += runs.workers(process.pid)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL) if target == "parent" else os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        gone(pids)
        process.communicate()
        now = check(store, expected)
        assert known <= now, "a row that was there is gone"
        known = now
    done = runs.run(*words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    check_finished(store, expected)
    assert runs.run(*words, folder=tmp_path).stderr.endswith(f"{CELLS} cells: {CELLS} stored before\n")
