"""Cells on workers that may die, one worker per slot: which cell runs where, retries, and time limits.

What a worker is, a process or a Ray actor, is said by an object with the methods of `Workers`.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Any, Protocol

from siegebench.cells import Cell
from siegebench.errors import ConfigError
from siegebench.executors.running import BUSY, STARTED, Report, write_failure
from siegebench.progress import Estimate, clock, earlier
from siegebench.store import Store
from siegebench.workspace import Settings

PATIENCE = 8.0  # seconds until it is said that no worker starts
MAX_CRASHES = 2  # retries of a cell whose worker died, before it is written as an error
CRASHED = "crashed"


class WorkerLost(Exception):
    """The worker of a slot has died, with what it was doing; the text says why, if that is known."""


class Workers(Protocol):
    """One worker per slot, each with at most one running cell."""

    def submit(self, slot: int, cell: Cell, settings: Settings, wait: bool) -> Future[Any]:
        """Run a cell in the worker of a slot."""

    def status(self, future: Future[Any]) -> str:
        """The status that a finished future brought.

        Raises:
            WorkerLost: when the worker died.
        """

    def start(self, slot: int) -> Future[Any]:
        """Start a worker for a slot, also in place of one that has died; the future ends when it is ready."""

    def kill(self, slot: int) -> None:
        """End the worker of a slot at once."""

    def waiting(self) -> str:
        """What to say when no worker has started after a while; empty for nothing."""

    def refused(self, times: int) -> Exception | None:
        """What to raise when a worker died `times` times, if no worker can be expected to live."""


@dataclass
class _Job:
    slot: int
    cell: Cell | None = None  # None: the slot waits for a worker to start
    ends: float | None = None  # when the time limit stops it
    expired: bool = False


def run_in_slots(
    cells: list[Cell], settings: Settings, report: Report, workers: Workers, slots: int, limit: float | None = None
) -> None:
    """Run all cells; each end is reported once. A cell whose worker dies is tried again, on any free worker.

    A slot whose workers die before they are ready, several times in a row, is given up.

    Args:
        limit: seconds after which the worker of a cell is ended and the cell written as an error.

    Raises:
        ConfigError: when no slot is left.
    """
    estimate = Estimate([], slots, earlier(Store(settings.root)))
    queues = _Queues(longest_first(cells, estimate.of), slots, estimate.of)
    patience: float | None = time.monotonic() + PATIENCE  # until it is said that no worker starts
    crashes: dict[str, int] = {}
    running: dict[Future[Any], _Job] = {}
    busy: list[Cell] = []  # currently computed by another run
    unready = [0] * slots  # workers in a row that died before they were ready

    def launch(slot: int) -> None:
        cell = queues.next(slot)
        waits = cell is None and bool(busy)
        cell = busy.pop(0) if waits else cell
        if cell is not None:
            report(cell, STARTED)
            ends = None if limit is None or waits else time.monotonic() + limit
            running[workers.submit(slot, cell, settings, waits)] = _Job(slot, cell, ends)

    def launch_idle() -> None:
        taken = {job.slot for job in running.values()}
        for slot in range(slots):
            if slot not in taken and unready[slot] <= MAX_CRASHES:
                launch(slot)

    running.update({workers.start(slot): _Job(slot) for slot in range(slots)})
    while busy or queues.left() or any(job.cell is not None for job in running.values()):
        ends = [job.ends for job in running.values()]
        nearest = min((end for end in (*ends, patience) if end is not None), default=None)
        left = None if nearest is None else max(0.0, nearest - time.monotonic())
        done, _ = wait(running, timeout=left, return_when=FIRST_COMPLETED)
        if patience is not None and (done or time.monotonic() >= patience):
            patience = None
            if not done and (told := workers.waiting()):
                print(told, file=sys.stderr, flush=True)
        for job in running.values() if not done else ():
            if job.ends is not None and job.ends <= time.monotonic():
                job.expired, job.ends = True, None
                workers.kill(job.slot)
        for future in done:
            job = running.pop(future)
            cell = job.cell
            try:
                status = workers.status(future)
            except WorkerLost as lost:
                unready[job.slot] = unready[job.slot] + 1 if cell is None else 0
                if unready[job.slot] <= MAX_CRASHES:
                    running[workers.start(job.slot)] = _Job(job.slot)
                elif min(unready) > MAX_CRASHES:
                    raise ConfigError(f"no worker starts: {lost}; finished rows are kept") from None
                if cell is None:
                    continue
                times = crashes[cell.key] = crashes.get(cell.key, 0) + 1
                if job.expired:
                    report(cell, _expired(cell, settings, limit or 0.0, times))
                elif times <= MAX_CRASHES:
                    queues.give_back(job.slot, cell)
                else:
                    error = workers.refused(times)
                    if error is not None:
                        raise error from None
                    report(cell, _crashed(cell, settings, times))
            else:
                unready[job.slot] = 0
                if cell is not None and status == BUSY:
                    busy.append(cell)
                elif cell is not None:
                    report(cell, _by_itself(cell, settings, status) if cell.key in crashes else status)
        launch_idle()


def _by_itself(cell: Cell, settings: Settings, status: str) -> str:
    """Status of a cell whose worker may have died after writing its row and before reporting."""
    row = Store(settings.root).get(cell) if status == "cached" else None
    return status if row is None else row.status


def _crashed(cell: Cell, settings: Settings, times: int) -> str:
    told = (
        f"the worker process died {times} times: it was killed, most often because memory ran out, or a library "
        "crashed. Run with --slots 1 to give it all memory; --executor serial shows a crash"
    )
    return CRASHED if write_failure(cell, settings, ChildProcessError(told), times) else "cached"


def _expired(cell: Cell, settings: Settings, limit: float, times: int) -> str:
    told = f"stopped after {clock(limit)}, the limit of a cell: raise --limit, or give the attack fewer steps"
    return "error" if write_failure(cell, settings, TimeoutError(told), times) else "cached"


def longest_first(cells: list[Cell], seconds: Callable[[Cell], float | None]) -> list[Cell]:
    """Cells of one victim and track, the longest first; cells that no stored row is like stay before them, in order."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(str((cell.track, cell.model, cell.backdoor, cell.defense)), []).append(cell)
    times = {cell.key: seconds(cell) for cell in cells}

    def order(cell: Cell) -> float:
        known = times[cell.key]
        return -math.inf if known is None else -known

    return [cell for group in groups.values() for cell in sorted(group, key=order)]


class _Queues:
    """One queue per slot, about equally long in time, with all cells of a model in one queue, in the order given.

    An idle slot takes the longest cell of the queue that has most left to do.

    Args:
        seconds: a cell's time, as far as it is known; others count as the mean of those.
    """

    def __init__(self, cells: Sequence[Cell], slots: int, seconds: Callable[[Cell], float | None]) -> None:
        known = {cell.key: s for cell in cells if (s := seconds(cell)) is not None}
        mean = sum(known.values()) / len(known) if known else 1.0
        self._seconds = {cell.key: known.get(cell.key, mean) for cell in cells}
        groups: dict[str, list[Cell]] = {}
        for cell in cells:
            groups.setdefault(str((cell.model, cell.backdoor)), []).append(cell)
        self._queues: list[list[Cell]] = [[] for _ in range(slots)]
        self._left = [0.0] * slots
        times = {name: sum(self._seconds[cell.key] for cell in group) for name, group in groups.items()}
        for name in sorted(groups, key=lambda name: -times[name]):
            slot = self._left.index(min(self._left))
            self._queues[slot] += groups[name]
            self._left[slot] += times[name]
        place = {cell.key: i for i, cell in enumerate(cells)}
        for queue in self._queues:
            queue.sort(key=lambda cell: place[cell.key])

    def next(self, slot: int) -> Cell | None:
        queue, at = self._queues[slot], 0
        if not queue:
            slot = max(range(len(self._queues)), key=lambda i: (bool(self._queues[i]), self._left[i]))
            queue = self._queues[slot]
            at = max(range(len(queue)), key=lambda i: (self._seconds[queue[i].key], i), default=0)
        if not queue:
            return None
        cell = queue.pop(at)
        self._left[slot] -= self._seconds[cell.key]
        return cell

    def left(self) -> bool:
        return any(self._queues)

    def give_back(self, slot: int, cell: Cell) -> None:
        """Put a cell first in the queue of a slot."""
        self._queues[slot].insert(0, cell)
        self._left[slot] += self._seconds[cell.key]
