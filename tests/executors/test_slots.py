"""Cells on workers that die, hang or never start, with workers that only pretend to compute."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from siegebench.cells import Cell
from siegebench.errors import ConfigError
from siegebench.executors import slots
from siegebench.executors.slots import WorkerLost, longest_first, run_in_slots
from siegebench.store import Store
from siegebench.workspace import Settings
from tests.test_store import cell, result


class Pretending:
    """Workers that end a cell at once, with what a script says of it: a status, `dies` or `hangs`."""

    def __init__(
        self, script: dict[str, list[str]], never: tuple[int, ...] = (), stillborn: tuple[int, ...] = ()
    ) -> None:
        self.script, self.never, self.stillborn = script, never, stillborn
        self.went: list[tuple[int, str]] = []
        self.started: list[int] = []
        self.at: dict[int, Future[Any]] = {}

    def start(self, slot: int) -> Future[Any]:
        self.started.append(slot)
        future: Future[Any] = Future()
        if not (slot in self.never and self.started.count(slot) > 1):  # no other worker comes for it
            future.set_result("dies" if slot in self.stillborn else "")
        return future

    def submit(self, slot: int, cell: Cell, settings: Settings, wait: bool) -> Future[Any]:
        name = name_of(cell)
        self.went.append((slot, name))
        left = self.script.get(name) or ["ok"]
        what = left.pop(0) if len(left) > 1 else left[0]
        self.at[slot] = future = Future()
        if what != "hangs":
            future.set_result(what)
        return future

    def status(self, future: Future[Any]) -> str:
        if future.result() == "dies":
            raise WorkerLost("no siegebench there")
        return str(future.result())

    def kill(self, slot: int) -> None:
        self.at[slot].set_result("dies")

    def waiting(self) -> str:
        return "no worker has started yet"

    def refused(self, times: int) -> Exception | None:
        return None


def named(name: str, model: str = "m") -> Cell:
    return cell(attack={"name": name, "version": 1}, model={"name": model, "version": 1})


def name_of(cell: Cell) -> str:
    return str((cell.attack or {})["name"])


def run(workers: Pretending, cells: list[Cell], folder: Path, count: int, limit: float | None = None) -> dict[str, str]:
    ended: dict[str, str] = {}

    def report(cell: Cell, status: str) -> None:
        if status != "started":
            assert name_of(cell) not in ended, "each end is reported once"
            ended[name_of(cell)] = status

    run_in_slots(cells, Settings(root=str(folder)), report, workers, count, limit)
    return ended


def test_cells_of_a_model_stay_with_a_worker_and_idle_workers_take_from_the_longest_queue(tmp_path: Path) -> None:
    workers = Pretending({})
    cells = [named(f"{model}{i}", model) for model in "ab" for i in range(3)] + [named("c0", "c")]
    assert set(run(workers, cells, tmp_path, 2).values()) == {"ok"}
    at = {name: slot for slot, name in workers.went}
    assert {at["a0"], at["a1"]} == {0}
    assert {at["b0"], at["b1"]} == {1}
    assert len(workers.went) == 7


def test_a_cell_whose_worker_dies_is_tried_again(tmp_path: Path) -> None:
    workers = Pretending({"once": ["dies", "ok"], "always": ["dies"]})
    ended = run(workers, [named("once"), named("always"), named("well")], tmp_path, 1)
    assert ended == {"once": "ok", "always": "crashed", "well": "ok"}
    assert workers.started == [0] * (1 + 1 + 1 + slots.MAX_CRASHES)
    (row,) = Store(tmp_path).rows()
    assert row.attempts == 1 + slots.MAX_CRASHES
    assert row.error is not None
    assert row.error["type"] == "ChildProcessError"


def test_another_worker_takes_the_cell_of_a_slot_that_gets_no_new_worker(tmp_path: Path) -> None:
    workers = Pretending({"lost": ["dies", "ok"], "b": ["ok"]}, never=(0,))
    assert run(workers, [named("lost", "a"), named("b", "b")], tmp_path, 2) == {"lost": "ok", "b": "ok"}
    assert workers.went == [(0, "lost"), (1, "b"), (1, "lost")]


def test_a_slot_whose_workers_never_get_ready_is_given_up(tmp_path: Path) -> None:
    workers = Pretending({}, stillborn=(0,))
    assert run(workers, [named("a", "a"), named("b", "b")], tmp_path, 2) == {"a": "ok", "b": "ok"}
    assert {slot for slot, _ in workers.went} == {1}
    workers = Pretending({}, stillborn=(0, 1))
    with pytest.raises(ConfigError, match="no worker starts: no siegebench there; finished rows are kept"):
        run(workers, [named("a", "a"), named("b", "b")], tmp_path, 2)
    assert workers.started.count(0) == 1 + slots.MAX_CRASHES


def test_a_cell_beyond_the_limit_is_stopped_and_says_so(tmp_path: Path) -> None:
    workers = Pretending({"slow": ["hangs"]})
    assert run(workers, [named("slow"), named("well")], tmp_path, 1, limit=0.2) == {"slow": "error", "well": "ok"}
    (row,) = Store(tmp_path).rows()
    assert row.error == {**(row.error or {}), "type": "TimeoutError"}
    assert "stopped after 0.2 s" in (row.error or {})["message"]
    assert "--limit" in (row.error or {})["message"]


@pytest.mark.parametrize("count", [1, 2])
def test_a_cell_that_another_run_computes_is_waited_for_at_the_end(count: int, tmp_path: Path) -> None:
    workers = Pretending({"shared": ["busy", "cached"]})
    ended = run(workers, [named("shared"), named("a"), named("b")], tmp_path, count)
    assert ended == {"shared": "cached", "a": "ok", "b": "ok"}


class Late(Pretending):
    """Workers that are ready after a while."""

    def start(self, slot: int) -> Future[Any]:
        future: Future[Any] = Future()
        threading.Timer(0.5, future.set_result, [""]).start()
        return future


@pytest.mark.parametrize(("patience", "said"), [(0.05, "no worker has started yet\n"), (60.0, "")])
def test_that_no_worker_starts_is_said_once(
    patience: float, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(slots, "PATIENCE", patience)
    ended: list[str] = []
    run_in_slots(
        [named("a"), named("b")], Settings(root=str(tmp_path)), lambda cell, status: ended.append(status), Late({}), 1
    )
    assert ended.count("ok") == 2
    assert capsys.readouterr().err == said


def test_the_longest_cells_of_a_model_come_first_by_the_times_of_stored_rows(tmp_path: Path) -> None:
    cells = [named("short"), named("other", "n"), named("long"), named("new")]
    seconds = {"short": 1.0, "long": 9.0, "other": 5.0}
    ordered = longest_first(cells, lambda cell: seconds.get(name_of(cell)))
    assert [name_of(cell) for cell in ordered] == ["new", "long", "short", "other"]
    store = Store(tmp_path)
    for one in cells[:3]:
        store.put(replace(result(one), timing={"seconds": seconds[name_of(one)]}))
    workers = Pretending({})
    run_in_slots(cells, Settings(root=str(tmp_path)), lambda *_: None, workers, 1)
    assert [name for _, name in workers.went] == ["new", "long", "short", "other"]


def test_queues_are_about_equally_long_in_time_and_the_longest_cell_is_taken_from_the_longest() -> None:
    seconds = {"a0": 9.0, "b0": 2.0, "b1": 3.0, "b2": 1.0, "c0": 2.0, "new": None}  # as the mean, 3.4
    cells = [named(name, name[0]) for name in seconds]
    queues = slots._Queues(cells, 2, lambda cell: seconds[name_of(cell)])

    def taken(slot: int) -> str | None:
        found = queues.next(slot)
        return None if found is None else name_of(found)

    assert [taken(0) for _ in range(3)] == ["a0", "c0", "new"]  # 11 s, then the longest of the other slot
    lost = queues.next(1)
    assert lost is not None
    assert name_of(lost) == "b0"
    queues.give_back(0, lost)
    assert [taken(0), taken(0), taken(1), taken(1)] == ["b0", "b1", "b2", None]
    assert not queues.left()
