"""Executors run the cells. A worker writes its own row and reports only its status.

`serial` runs in this process. `local` uses one spawned process per slot: if a worker dies, only its cell is lost, and
it is retried. Both use `run_cell`.
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

from siegebench import sources, worker
from siegebench.cells import Cell, Result
from siegebench.errors import ConfigError
from siegebench.reuse import reason
from siegebench.store import Store
from siegebench.workspace import Settings, Workspace

# called for each cell when it starts (`started`) and ends: ok, not_applicable, error, cached, crashed
Report = Callable[[Cell, str], None]
STARTED = "started"
MAX_CRASHES = 2  # retries of a cell whose worker died, before it is written as an error


class Executor(Protocol):
    """Runs cells and reports each end once. Rows are on disk before they are reported."""

    def run(self, cells: list[Cell], settings: Settings, report: Report) -> None: ...


_workspaces: dict[str, Workspace] = {}  # by the key of their settings


BUSY = "busy"  # another run is computing the cell


def run_cell(cell: Cell, settings: Settings, wait: bool = True, workspace: Workspace | None = None) -> str:
    """Compute and store one cell unless its row is used (see `reuse`); returns its status.

    A row that is replaced moves to the history, an error stays in the errors of the new row.

    Args:
        wait: wait for another run that computes the cell; otherwise return `busy` at once.
    """
    from siegebench.evaluation import evaluate, failed

    if workspace is None:
        workspace = _workspaces.get(settings.key) or Workspace(settings)
        _workspaces[settings.key] = workspace
    store = workspace.store
    if not reason(cell, store, settings):
        return "cached"
    with store.lock(cell.key, wait) as mine:  # several runs on one store share the work
        if not mine:
            return BUSY
        if not reason(cell, store, settings):
            return "cached"
        before = _failure(store, cell)
        result = evaluate(cell, workspace).after(before)
        try:
            store.put(result)
        except (TypeError, ValueError, ConfigError) as error:  # an entry returned something that cannot be stored
            refused = failed(cell, error).after(before)
            refused.env, refused.timing, refused.sources = result.env, result.timing, result.sources
            store.put(refused)
            result = refused
    return result.status


def _failure(store: Store, cell: Cell) -> Result | None:
    """The stored row of a cell if it is an error, which the next row keeps."""
    row = store.get(cell)
    return row if row is not None and row.status == "error" else None


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
    """One spawned process per slot, each with at most one running cell."""

    def __init__(self, slots: int | None = None) -> None:
        self.slots = slots or max(1, os.cpu_count() or 1)

    def run(self, cells: list[Cell], settings: Settings, report: Report) -> None:
        slots = min(self.slots, len(cells))
        if slots == 0:
            return
        worker.check_guarded()
        threads = settings.threads or max(1, (os.cpu_count() or 1) // slots)
        queues = _Queues(cells, slots)
        crashes: dict[str, int] = {}
        with _Pools(slots, threads) as pools:
            running: dict[Future[str], tuple[int, Cell]] = {}
            busy: list[Cell] = []  # currently computed by another run

            def launch(slot: int, cell: Cell | None) -> None:
                wait_for = cell is None and bool(busy)
                cell = busy.pop(0) if wait_for else cell
                if cell is not None:
                    report(cell, STARTED)
                    running[pools.submit(slot, run_cell, cell, settings, wait_for)] = (slot, cell)

            for slot in range(slots):
                launch(slot, queues.next(slot))
            while running:
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    slot, cell = running.pop(future)
                    again: Cell | None = None
                    try:
                        status = future.result()
                    except BrokenProcessPool:
                        pools.replace(slot)
                        crashes[cell.key] = crashes.get(cell.key, 0) + 1
                        if crashes[cell.key] <= MAX_CRASHES:
                            again = cell
                        elif not pools.started.is_set():
                            raise ConfigError(
                                f"no worker process has started, {crashes[cell.key]} ended before; nothing was "
                                f"computed. Their messages are above. In a script, {worker.GUARD}"
                            ) from None
                        else:
                            report(cell, _write_crash(cell, settings, crashes[cell.key]))
                    else:
                        if status == BUSY:
                            busy.append(cell)
                        else:
                            report(cell, _by_itself(cell, settings, status) if cell.key in crashes else status)
                    launch(slot, again or queues.next(slot))


def _by_itself(cell: Cell, settings: Settings, status: str) -> str:
    """Status of a cell whose worker may have died after writing its row and before reporting."""
    row = Store(settings.root).get(cell) if status == "cached" else None
    return status if row is None else row.status


def _write_crash(cell: Cell, settings: Settings, times: int) -> str:
    from siegebench.evaluation import failed, now

    store = Store(settings.root)
    with store.lock(cell.key):
        if not reason(cell, store, settings):
            return "cached"  # another run has computed it
        told = (
            f"the worker process died {times} times: it was killed, most often because memory ran out, or a library "
            "crashed. Run with --slots 1 to give it all memory; --executor serial shows a crash"
        )
        result = failed(cell, ChildProcessError(told))
        result.timing = {"ended": now()}
        result.sources = sources.of(cell)
        store.put(result.after(_failure(store, cell), times))
    return "crashed"


class _Queues:
    """One queue per slot, with all cells of a model in one queue; an idle slot takes from the longest queue."""

    def __init__(self, cells: list[Cell], slots: int) -> None:
        groups: dict[str, list[Cell]] = {}
        for cell in cells:
            groups.setdefault(str((cell.model, cell.backdoor)), []).append(cell)
        self._queues: list[list[Cell]] = [[] for _ in range(slots)]
        for group in groups.values():
            min(self._queues, key=len).extend(group)

    def next(self, slot: int) -> Cell | None:
        own = self._queues[slot]
        if own:
            return own.pop(0)
        longest = max(self._queues, key=len)
        return longest.pop() if longest else None


class _Pools:
    """One single-worker pool per slot, so that a dead worker does not affect the others."""

    def __init__(self, slots: int, threads: int) -> None:
        self._threads = threads
        # never fork: torch's thread pools and CUDA do not support it
        self._context = multiprocessing.get_context("spawn")
        self.started = self._context.Event()  # set once a worker is ready
        self._pools = [self._new() for _ in range(slots)]

    def _new(self) -> ProcessPoolExecutor:
        given = (self._threads, self.started)
        return ProcessPoolExecutor(1, mp_context=self._context, initializer=worker.start, initargs=given)

    def submit(self, slot: int, call: Callable[..., str], *args: Any) -> Future[str]:
        """Run in the worker of a slot. A started process ignores Ctrl-C, even while it imports."""
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
        if kind is not None:  # interrupted: do not wait for running cells
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
    """SIGTERM ends a run like Ctrl-C: finished rows are kept, the others are left to the next run."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop) if threading.current_thread() is threading.main_thread() else None
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
