"""Executors run the cells. A worker writes its own row and reports only its status.

`serial` runs in this process, `local` has one process per slot, `ray` one Ray actor per slot, on one machine or many.
If a worker dies, only its cell is lost, and it is retried. All use `run_cell`.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from siegebench.errors import ConfigError, did_you_mean
from siegebench.executors.local import LocalExecutor
from siegebench.executors.ray import RayExecutor
from siegebench.executors.running import BUSY, STARTED, Executor, Report, run_cell
from siegebench.executors.serial import SerialExecutor

__all__ = [
    "BUSY", "STARTED", "Executor", "LocalExecutor", "RayExecutor", "Report", "SerialExecutor", "executor",
    "interruptible", "run_cell",
]  # fmt: skip
NAMES = ("serial", "local", "ray")


def executor(
    name: str, slots: int | None = None, limit: float | None = None, address: str | None = None, gpus: float = 0.0
) -> Executor:
    """The executor of a name.

    Args:
        slots: cells at once; by default one per core (`local`), or as many as the cluster has room for (`ray`).
        limit: seconds after which a cell is stopped and written as an error; not for `serial`.
        address, gpus: of `ray`, see `RayExecutor`.

    Raises:
        ConfigError: for another name, or an option that the executor does not have.
    """
    if name not in NAMES:
        raise ConfigError(f"unknown executor {name!r}. {did_you_mean(name, NAMES)}")
    if limit is not None and (name == "serial" or limit <= 0):
        raise ConfigError(f"limit {limit:g}: expected seconds above 0 and executor local or ray; found {name!r}")
    if name != "ray" and (address is not None or gpus):
        raise ConfigError(f"an address and a share of GPUs are for executor ray, found {name!r}")
    if name == "serial":
        return SerialExecutor()
    return LocalExecutor(slots, limit) if name == "local" else RayExecutor(slots, limit, address, gpus)


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM ends a run like Ctrl-C: finished rows are kept, the others are left to the next run."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop) if threading.current_thread() is threading.main_thread() else None
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
