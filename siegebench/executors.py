"""Executors: who runs the cells. A worker writes its row itself; the engine only hears how it ended.

`serial` runs in this process. `local` keeps one spawned process for each slot: a worker that dies loses only its cell,
which is tried again. All of them share one function, `run_cell`.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, Protocol

from siegebench import worker
from siegebench.cells import Cell
from siegebench.errors import ConfigError
from siegebench.store import Store
from siegebench.workspace import Settings, Workspace

# called with each cell when it starts (`started`) and with how it ended: ok, not_applicable, error, cached, crashed
Report = Callable[[Cell, str], None]
STARTED = "started"
MAX_CRASHES = 2  # a cell whose worker died this often more is written as an error


class Executor(Protocol):
    """Runs cells and reports the end of each once. Rows are on disk before they are reported."""

    def run(self, cells: list[Cell], settings: Settings, report: Report) -> None: ...


_workspaces: dict[str, Workspace] = {}  # by the key of their settings


BUSY = "busy"  # another run is computing the cell


def run_cell(cell: Cell, settings: Settings, wait: bool = True, workspace: Workspace | None = None) -> str:
    """Compute and store one cell unless its row is there; how it ended.

    Args:
        wait: for another run that computes the cell; else `busy` comes back at once.
    """
    from siegebench.evaluation import evaluate, failed

    if workspace is None:
        workspace = _workspaces.get(settings.key) or Workspace(settings)
        _workspaces[settings.key] = workspace
    store = workspace.store
    if store.finished(cell):
        return "cached"
    with store.lock(cell.key, wait) as mine:  # two runs over one store share the work
        if not mine:
            return BUSY
        before = store.get(cell)
        if before is not None and before.status != "error":
            return "cached"
        result = evaluate(cell, workspace).after(before)
        try:
            store.put(result)
        except (TypeError, ValueError, ConfigError) as error:  # an entry gave something that no row can hold
            refused = failed(cell, error).after(before)
            refused.env, refused.timing = result.env, result.timing
            store.put(refused)
            result = refused
    return result.status


class SerialExecutor:
    """One cell after another, in this process."""

    def __init__(self, workspace: Workspace | None = None) -> None:
        self.workspace = workspace

    def run(self, cells: list[Cell], settings: Settings, report: Report) -> None:
        if settings.threads is not None:
            import torch

            torch.set_num_threads(settings.threads)
        workspace = self.workspace or Workspace(settings)
        later = []
        for cell in cells:
            report(cell, STARTED)
            status = run_cell(cell, settings, wait=False, workspace=workspace)
            if status == BUSY:
                later.append(cell)
            else:
                report(cell, status)
        for cell in later:
            report(cell, run_cell(cell, settings, workspace=workspace))


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
            busy: list[Cell] = []  # computed by another run at the moment

            def launch(slot: int, cell: Cell | None) -> None:
                wait_for = cell is None and bool(busy)
                cell = busy.pop(0) if wait_for else cell
                if cell is not None:
                    report(cell, STARTED)
                    flying[pools.submit(slot, run_cell, cell, settings, wait_for)] = (slot, cell)

            for slot in range(slots):
                launch(slot, queue.next(slot))
            while flying:
                done, _ = wait(flying, return_when=FIRST_COMPLETED)
                for future in done:
                    slot, cell = flying.pop(future)
                    again: Cell | None = None
                    try:
                        status = future.result()
                    except BrokenProcessPool:
                        pools.replace(slot)
                        crashes[cell.key] = crashes.get(cell.key, 0) + 1
                        if crashes[cell.key] <= MAX_CRASHES:
                            again = cell
                        else:
                            report(cell, _write_crash(cell, settings, crashes[cell.key]))
                    else:
                        if status == BUSY:
                            busy.append(cell)
                        else:
                            report(cell, _by_itself(cell, settings, status) if cell.key in crashes else status)
                    launch(slot, again or queue.next(slot))


def _by_itself(cell: Cell, settings: Settings, status: str) -> str:
    """How a cell of this run ended whose worker may have died between its row and its report."""
    row = Store(settings.root).get(cell) if status == "cached" else None
    return status if row is None else row.status


def _write_crash(cell: Cell, settings: Settings, times: int) -> str:
    from siegebench.evaluation import failed, now

    store = Store(settings.root)
    with store.lock(cell.key):
        before = store.get(cell)
        if before is not None and before.status != "error":
            return "cached"  # another run has managed it
        result = failed(cell, RuntimeError(f"the worker process died {times} times (killed, or out of memory)"))
        result.timing = {"ended": now()}
        store.put(result.after(before, times))
    return "crashed"


class _Shares:
    """Each slot has a share of its own, whole models at a time; a slot that is done helps the fullest one."""

    def __init__(self, cells: list[Cell], slots: int) -> None:
        groups: dict[str, list[Cell]] = {}
        for cell in cells:
            groups.setdefault(str((cell.model, cell.backdoor)), []).append(cell)
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
        return ProcessPoolExecutor(1, mp_context=context, initializer=worker.start, initargs=(self._threads,))

    def submit(self, slot: int, call: Callable[..., str], *args: Any) -> Future[str]:
        """Run in the worker of a slot. A process that this starts never hears Ctrl-C, not even while it imports."""
        if not hasattr(signal, "pthread_sigmask"):
            return self._pools[slot].submit(call, *args)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return self._pools[slot].submit(call, *args)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def replace(self, slot: int) -> None:
        self._pools[slot].shutdown(wait=False, cancel_futures=True)
        self._pools[slot] = self._new()

    def __enter__(self) -> _Pools:
        self._others = multiprocessing.active_children()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is not None:  # interrupted: do not wait for the cells in flight
            for process in multiprocessing.active_children():
                if process not in self._others:
                    process.kill()
        for pool in self._pools:
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
