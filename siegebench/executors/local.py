"""Worker processes of this machine, one per slot, so that a dead one does not affect the others."""

from __future__ import annotations

import multiprocessing
import os
import signal
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from siegebench import worker
from siegebench.cells import Cell
from siegebench.errors import ConfigError
from siegebench.executors.running import Report, run_cell
from siegebench.executors.slots import WorkerLost, run_in_slots
from siegebench.workspace import Settings


class LocalExecutor:
    """One spawned process per slot, each with at most one running cell."""

    def __init__(self, slots: int | None = None, limit: float | None = None) -> None:
        self.slots = slots or max(1, os.cpu_count() or 1)
        self.limit = limit

    def run(self, cells: list[Cell], settings: Settings, report: Report) -> None:
        slots = min(self.slots, len(cells))
        if slots == 0:
            return
        worker.check_guarded()
        threads = settings.threads or max(1, (os.cpu_count() or 1) // slots)
        with _Processes(slots, threads) as processes:
            run_in_slots(cells, settings, report, processes, slots, self.limit)


class _Processes:
    """Pools of one process each."""

    def __init__(self, slots: int, threads: int) -> None:
        self._threads = threads
        # never fork: torch's thread pools and CUDA do not support it
        self._context = multiprocessing.get_context("spawn")
        self._started = self._context.Event()  # set once a worker is ready
        self._pools: list[ProcessPoolExecutor | None] = [None] * slots

    def _new(self) -> ProcessPoolExecutor:
        given = (self._threads, self._started)
        return ProcessPoolExecutor(1, mp_context=self._context, initializer=worker.start, initargs=given)

    def submit(self, slot: int, cell: Cell, settings: Settings, wait: bool) -> Future[str]:
        """Run in the worker of a slot. A started process ignores Ctrl-C, even while it imports."""
        pool = self._pools[slot]
        assert pool is not None
        blocks = hasattr(signal, "pthread_sigmask")
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if blocks else ()
        try:
            return pool.submit(run_cell, cell, settings, wait)
        except BrokenProcessPool as error:  # its process died between two cells
            failed: Future[str] = Future()
            failed.set_exception(error)
            return failed
        finally:
            if blocks:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def status(self, future: Future[str]) -> str:
        try:
            return future.result()
        except BrokenProcessPool:
            raise WorkerLost from None

    def start(self, slot: int) -> Future[str]:
        before = self._pools[slot]
        if before is not None:
            before.shutdown(wait=False, cancel_futures=True)
        self._pools[slot] = self._new()
        ready: Future[str] = Future()  # its process starts with the first cell
        ready.set_result("")
        return ready

    def kill(self, slot: int) -> None:
        processes = getattr(self._pools[slot], "_processes", None) or {}  # public from Python 3.14 on
        for process in list(processes.values()):
            process.kill()

    def waiting(self) -> str:
        return ""

    def refused(self, times: int) -> Exception | None:
        if self._started.is_set():
            return None
        return ConfigError(
            f"no worker process has started, {times} ended before; nothing was computed. Their messages are above. "
            f"In a script, {worker.GUARD}"
        )

    def __enter__(self) -> _Processes:
        self._others = multiprocessing.active_children()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:  # interrupted: do not wait for running cells
            for process in multiprocessing.active_children():
                if process not in self._others:
                    process.kill()
        for pool in filter(None, self._pools):
            pool.shutdown(wait=kind is None, cancel_futures=True)
