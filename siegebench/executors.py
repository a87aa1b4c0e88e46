"""Executors: who runs the cells. A worker writes its row itself; the engine only hears how it ended.

`serial` runs in this process. `local` keeps one spawned process for each slot: a worker that dies loses only its cell,
which is tried again. All of them share one function, `run_cell`.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, Protocol

from siegebench.cells import Cell
from siegebench.errors import ConfigError
from siegebench.store import Store
from siegebench.workspace import Settings, Workspace

Report = Callable[
    [Cell, str], None
]  # called with each cell and how it ended: ok, not_applicable, error, cached, crashed
MAX_CRASHES = 2  # a cell whose worker died this often more is written as an error


class Executor(Protocol):
    """Runs cells and reports each once. Rows are on disk before they are reported."""

    def run(self, cells: list[Cell], settings: Settings, report: Report) -> None: ...


_workspaces: dict[str, Workspace] = {}


def run_cell(cell: Cell, settings: Settings, workspace: Workspace | None = None) -> str:
    """Compute and store one cell unless its row is there; how it ended."""
    from siegebench.evaluate import evaluate

    if workspace is None:
        workspace = _workspaces.get(settings.root) or Workspace(settings)
        _workspaces[settings.root] = workspace
    store = workspace.store
    if store.finished(cell):
        return "cached"
    with store.lock(cell.key):  # two runs over one store share the work
        before = store.get(cell)
        if before is not None and before.status != "error":
            return "cached"
        result = evaluate(cell, workspace, attempts=1 if before is None else before.attempts + 1)
        store.put(result)
    return result.status


class SerialExecutor:
    """One cell after another, in this process."""

    def __init__(self, workspace: Workspace | None = None) -> None:
        self.workspace = workspace

    def run(self, cells: list[Cell], settings: Settings, report: Report) -> None:
        workspace = self.workspace or Workspace(settings)
        for cell in cells:
            report(cell, run_cell(cell, settings, workspace))


def _start_worker(threads: int) -> None:
    """In a fresh process: leave Ctrl-C to the parent, share the cores, and go when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)  # the parent was killed; the store needs no farewell

    threading.Thread(target=watch, daemon=True).start()
    import torch

    torch.set_num_threads(threads)


class LocalExecutor:
    """One spawned process for each slot, at most one cell in flight in each."""

    def __init__(self, slots: int | None = None) -> None:
        self.slots = slots or max(1, os.cpu_count() or 1)

    def run(self, cells: list[Cell], settings: Settings, report: Report) -> None:
        slots = min(self.slots, len(cells))
        if slots == 0:
            return
        threads = settings.threads or max(1, (os.cpu_count() or 1) // slots)
        queue = _Shares(cells, slots)
        crashes: dict[str, int] = {}
        with _Pools(slots, threads) as pools:
            flying: dict[Future[str], tuple[int, Cell]] = {}
            for slot in range(slots):
                _launch(pools, slot, queue.next(slot), settings, flying)
            while flying:
                done, _ = wait(flying, return_when=FIRST_COMPLETED)
                for future in done:
                    slot, cell = flying.pop(future)
                    again: Cell | None = None
                    try:
                        report(cell, future.result())
                    except BrokenProcessPool:
                        pools.replace(slot)
                        crashes[cell.key] = crashes.get(cell.key, 0) + 1
                        if crashes[cell.key] <= MAX_CRASHES:
                            again = cell
                        else:
                            _write_crash(cell, settings, crashes[cell.key])
                            report(cell, "crashed")
                    _launch(pools, slot, again or queue.next(slot), settings, flying)


def _launch(
    pools: _Pools, slot: int, cell: Cell | None, settings: Settings, flying: dict[Future[str], tuple[int, Cell]]
) -> None:
    if cell is not None:
        flying[pools[slot].submit(run_cell, cell, settings)] = (slot, cell)


def _write_crash(cell: Cell, settings: Settings, attempts: int) -> None:
    from siegebench.evaluate import failed

    result = failed(cell, RuntimeError(f"the worker process died {attempts} times (killed, or out of memory)"))
    result.attempts = attempts
    Store(settings.root).put(result)


class _Shares:
    """Each slot has a share of its own, whole models at a time; a slot that is done helps the fullest one."""

    def __init__(self, cells: list[Cell], slots: int) -> None:
        groups: dict[str, list[Cell]] = {}
        for cell in cells:
            groups.setdefault(str((cell.track, cell.model, cell.backdoor)), []).append(cell)
        self._shares: list[list[Cell]] = [[] for _ in range(slots)]
        for group in groups.values():
            min(self._shares, key=len).extend(group)

    def next(self, slot: int) -> Cell | None:
        own = self._shares[slot]
        if own:
            return own.pop(0)
        fullest = max(self._shares, key=len)
        return fullest.pop() if fullest else None


class _Pools:
    """One single-worker pool a slot, so that a dead worker takes nothing else along."""

    def __init__(self, slots: int, threads: int) -> None:
        self._threads = threads
        self._pools = [self._new() for _ in range(slots)]

    def _new(self) -> ProcessPoolExecutor:
        # never fork: torch's thread pools and CUDA do not survive it
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(1, mp_context=context, initializer=_start_worker, initargs=(self._threads,))

    def __getitem__(self, slot: int) -> ProcessPoolExecutor:
        return self._pools[slot]

    def replace(self, slot: int) -> None:
        self._pools[slot].shutdown(wait=False, cancel_futures=True)
        self._pools[slot] = self._new()

    def __enter__(self) -> _Pools:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        for pool in self._pools:
            if kind is not None:  # interrupted: do not wait for the cells in flight
                for process in list((pool._processes or {}).values()):
                    process.kill()
            pool.shutdown(wait=kind is None, cancel_futures=True)


def executor(name: str, slots: int | None = None) -> Executor:
    """The executor of a name.

    Raises:
        ConfigError: for another name.
    """
    if name == "serial":
        return SerialExecutor()
    if name == "local":
        return LocalExecutor(slots)
    raise ConfigError(f"unknown executor {name!r}; serial or local")


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does: rows that are written stay, the rest is left for the next run."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop) if threading.current_thread() is threading.main_thread() else None
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
