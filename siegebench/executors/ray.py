"""Ray: one actor per slot, on the GPUs and machines of a cluster (extra `ray`)."""

from __future__ import annotations

import logging
import os
import secrets
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from siegebench.cells import Cell, digest
from siegebench.errors import ConfigError, MissingExtra
from siegebench.executors.running import BUSY, Report, run_cell
from siegebench.executors.slots import WorkerLost, run_in_slots
from siegebench.store import Store
from siegebench.workspace import Settings


@dataclass(frozen=True)
class RayExecutor:
    """One actor per slot. An actor keeps its models and data while cells need them.

    A worker that sees the store of this process, through a shared file system, writes its rows there. Any other worker
    has a store of its own below its temporary folder, and sends the files of each row here. Each machine needs
    siegebench and the data. If a worker or a machine dies, its cells are tried again elsewhere.

    Attributes:
        slots: actors; by default as many as the cluster has room for.
        limit: seconds after which a cell is stopped and written as an error.
        address: of a running cluster, such as `auto` or `ray://host:10001`; without it Ray starts on this machine.
        gpus: share of a GPU for each actor, such as 0.5. Ray does not limit the memory that it uses.
    """

    slots: int | None = None
    limit: float | None = None
    address: str | None = None
    gpus: float = 0.0

    def run(self, cells: list[Cell], settings: Settings, report: Report) -> None:
        if not cells:
            return
        with _connected(self.address) as ray:
            threads = settings.threads or 1
            slots = min(self.slots or self._room(ray, threads), len(cells))
            with _Actors(ray, slots, threads, self.gpus, settings.root) as actors:
                run_in_slots(cells, settings, report, actors, slots, self.limit)

    def _room(self, ray: ModuleType, threads: int) -> int:
        """Actors that the cluster has CPUs and GPUs for."""
        found = ray.cluster_resources()
        room = int(found.get("CPU", 0) // threads)
        if self.gpus:
            room = min(room, int(found.get("GPU", 0) / self.gpus))
        if room == 0:
            told = f"{found.get('CPU', 0):g} CPUs and {found.get('GPU', 0):g} GPUs"
            raise ConfigError(
                f"the Ray cluster has {told}; a worker needs {threads} CPUs and {self.gpus:g} GPUs: lower --threads or "
                "--gpus, or start more nodes"
            )
        return room


@contextmanager
def _connected(address: str | None) -> Iterator[ModuleType]:
    """Ray, connected for as long as the block lasts; a connection that exists already is used and kept."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what newer versions do; silences their warning
    try:
        import ray
    except ImportError:
        raise MissingExtra("ray", "ray", "the Ray executor") from None
    mine = not ray.is_initialized()
    if mine:
        # what workers print would be mixed into the output of the command
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if address is None:
            quiet["include_dashboard"] = False
        try:
            ray.init(address=address or "local", **quiet)
        except (ConnectionError, ValueError, RuntimeError) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ConfigError(f"--address {address}: no Ray cluster answers ({first}); start one: ray start") from None
    try:
        yield ray
    finally:
        if mine:
            ray.shutdown()


class _Worker:
    """What runs in an actor."""

    def __init__(self, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)

    def sees(self, file: str) -> bool:
        """Whether a file of the driver exists here: the worker is ready, and on the same file system or not."""
        return Path(file).exists()

    def run(self, cell: Cell, settings: Settings, wait: bool) -> str:
        """Compute a cell in the store of the driver; returns its status."""
        return run_cell(cell, settings, wait)

    def run_away(self, cell: Cell, settings: Settings) -> tuple[str, dict[str, bytes]]:
        """Compute a cell in a store of this machine; returns its status and the files of its row."""
        own = Path(tempfile.gettempdir()) / f"siegebench-{digest(settings.root)[:12]}"
        status = run_cell(cell, replace(settings, root=str(own)))
        return status, Store(own).files(cell)


@dataclass
class _Call:
    slot: int
    cell: Cell | None = None  # None: the actor starts
    lock: ExitStack = field(default_factory=ExitStack)  # of the cell, where no worker can hold it


class _Actors:
    """Actors, and the rows that they send."""

    def __init__(self, ray: ModuleType, slots: int, threads: int, gpus: float, root: str) -> None:
        self._ray, self._root = ray, Path(root).absolute()
        self._store = Store(self._root)
        self._class = ray.remote(num_cpus=threads, num_gpus=gpus, max_restarts=0)(_Worker)
        self._threads, self._gpus = threads, gpus
        self._actors: dict[int, Any] = {}
        self._away: dict[int, bool] = {}  # whether the worker of a slot has another file system
        self._calls: dict[Future[Any], _Call] = {}
        self._probe = self._root / f".worker-{secrets.token_hex(8)}"

    def start(self, slot: int) -> Future[Any]:
        if slot in self._actors:
            self.kill(slot)
        self._actors[slot] = self._class.remote(self._threads)
        return self._called(self._actors[slot].sees.remote(str(self._probe)), _Call(slot))

    def submit(self, slot: int, cell: Cell, settings: Settings, wait: bool) -> Future[Any]:
        settings, call = replace(settings, root=str(self._root)), _Call(slot, cell)
        if not self._away[slot]:
            return self._called(self._actors[slot].run.remote(cell, settings, wait), call)
        if call.lock.enter_context(self._store.lock(cell.key, wait)):
            return self._called(self._actors[slot].run_away.remote(cell, settings), call)
        other: Future[Any] = Future()
        other.set_result(BUSY)
        self._calls[other] = call
        return other

    def _called(self, reference: Any, call: _Call) -> Future[Any]:
        future: Future[Any] = reference.future()
        self._calls[future] = call
        return future

    def status(self, future: Future[Any]) -> str:
        call = self._calls.pop(future)
        with call.lock:
            try:
                found = future.result()
            except self._ray.exceptions.RayActorError as error:
                raise WorkerLost(" ".join(str(error).split())[:300]) from None
            except self._ray.exceptions.RayTaskError as error:
                raise error.cause if error.cause is not None else error from None
            if call.cell is None:
                self._away[call.slot] = not found
                return ""
            if isinstance(found, tuple):
                found, files = found
                self._store.receive(call.cell, files)
            return str(found)

    def kill(self, slot: int) -> None:
        self._ray.kill(self._actors[slot])

    def refused(self, times: int) -> Exception | None:
        return None

    def waiting(self) -> str:
        """For a run in which no worker has started: what was asked for, what the cluster has free, what to type."""
        free, whole = self._ray.available_resources(), self._ray.cluster_resources()
        told = ", ".join(f"{free.get(name, 0):g} of {whole.get(name, 0):g} {name}s free" for name in ("CPU", "GPU"))
        return (
            f"no worker has started yet: one needs {self._threads} CPUs and {self._gpus:g} GPUs, the Ray cluster has "
            f"{told}; wait for it, or press Ctrl-C and give lower --threads or --gpus, or start more nodes"
        )

    def __enter__(self) -> _Actors:
        self._root.mkdir(parents=True, exist_ok=True)
        self._probe.touch()
        return self

    def __exit__(self, *_: object) -> None:
        for slot in self._actors:
            self.kill(slot)
        for call in self._calls.values():
            call.lock.close()
        self._probe.unlink(missing_ok=True)
