"""Progress of a long run on stderr: cells done, cells running, networks in training, and the time left."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from siegebench.errors import SiegeError

if TYPE_CHECKING:
    from siegebench.cells import Cell, Result
    from siegebench.store import Store

WATCHED = "SIEGEBENCH_PROGRESS"  # set by the command, so that its worker processes tell of their training too
NAMED = "named "
MOST = 2000  # rows that are read for an estimate
EVERY = 10.0  # seconds between two lines about one training


class Estimate:
    """Estimates the time that the remaining cells will take, from finished ones.

    A cell is expected to take the median time per image of the cells that are most like it: those with the same victim
    and the same entry, else with the same entry and parameters, else with an entry of the same name. Training is not
    part of it, because the first cell of a victim trains for all others.

    Args:
        rows: rows of earlier runs.
    """

    def __init__(self, cells: Sequence[Cell], slots: int, rows: Iterable[Result] = ()) -> None:
        self.left = {cell.key: cell for cell in cells}
        self.slots = max(1, slots)
        self.seconds: dict[str, list[float]] = {}
        for row in rows:
            if row.status == "ok" and row.timing.get("seconds") is not None:
                self._add(row.cell, float(row.timing["seconds"]) - float(row.timing.get("training") or 0.0))

    def _add(self, cell: Cell, seconds: float) -> None:
        for work in _likeness(cell):
            self.seconds.setdefault(work, []).append(max(0.0, seconds) / cell.data["count"])

    def done(self, cell: Cell, seconds: float | None) -> None:
        """A cell has ended; `seconds` is None when its row was already stored."""
        self.left.pop(cell.key, None)
        if seconds is not None:
            self._add(cell, seconds)

    def of(self, cell: Cell) -> float | None:
        """Seconds that a cell will take; None if no finished cell is like it."""
        found = next((self.seconds[work] for work in _likeness(cell) if work in self.seconds), None)
        return None if found is None else _median(found) * float(cell.data["count"])

    def guessed(self) -> int:
        """The number of cells left that no finished cell is like."""
        return sum(self.of(cell) is None for cell in self.left.values())

    def remaining(self) -> float | None:
        """Seconds left; None until a cell has been computed."""
        usual = [s for work, found in self.seconds.items() if work.startswith(NAMED) for s in found]
        if not usual:
            return None
        each = [(self.of(cell), cell.data["count"]) for cell in self.left.values()]
        expected = [_median(usual) * count if seconds is None else seconds for seconds, count in each]
        return sum(expected) / min(self.slots, max(1, len(expected)))


def _likeness(cell: Cell) -> tuple[str, str, str]:
    """What a cell has in common with others, from most to least."""
    entry = cell.doing or {}
    exact = f"{cell.track} {entry}"
    return f"{exact} {cell.model.get('name')} {cell.defense} {cell.backdoor}", exact, f"{NAMED}{cell.work}"


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def clock(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `2 h 5 min`; `0.4 s` below ten seconds."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def about(seconds: float) -> str:
    """A rough duration: `40 s`, `3 min`, `2 h 5 min`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 3600 else clock(seconds)


def earlier(store: Store) -> list[Result]:
    """Rows of earlier runs, for estimates; none if a file of the store is not a row."""
    try:
        return list(islice(store.rows(), MOST))
    except SiegeError:
        return []


class Progress:
    """A bar on stderr if it is a terminal, otherwise one line for each computed cell."""

    def __init__(self) -> None:
        from rich import progress
        from rich.console import Console

        self.total, self.done, self.terminal = 0, 0, sys.stderr.isatty()
        self.running: dict[str, str] = {}
        self.started: dict[str, float] = {}
        self.titles: Mapping[str, str] = {}
        self.store: Store | None = None
        self.estimate = Estimate([], 1)
        self.bar = progress.Progress(
            progress.BarColumn(20), progress.MofNCompleteColumn(), progress.TimeElapsedColumn(),
            progress.TextColumn("{task.description}", markup=False),
            console=Console(stderr=True), disable=not self.terminal, transient=True,
        )  # fmt: skip
        self.task = self.bar.add_task("", total=None)

    def __enter__(self) -> Progress:
        self.before = os.environ.get(WATCHED)
        os.environ[WATCHED] = "1"
        self.bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.bar.stop()
        if self.before is None:
            os.environ.pop(WATCHED, None)

    def say(self, text: str) -> None:
        """Show what is being done."""
        self.bar.update(self.task, description=text)

    def begin(
        self, cells: Sequence[Cell], slots: int, titles: Mapping[str, str] | None = None, store: Store | None = None
    ) -> None:
        """Set the cells, how many run at a time, their titles by key, and the store, which knows how long rows took."""
        self.total, self.titles, self.store = len(cells), titles or {}, store
        self.estimate = Estimate(cells, slots, () if store is None else earlier(store))
        self.bar.update(self.task, total=self.total, description="")

    def step(self, cell: Cell, status: str) -> None:
        """A cell starts or has ended."""
        title = self.titles.get(cell.key, cell.title)
        if status == "started":
            self.running[cell.key] = title
            self.started[cell.key] = time.monotonic()
        else:
            start = self.started.pop(cell.key, None)
            self.running.pop(cell.key, None)
            self.done += 1
            took = None if start is None or status == "cached" else time.monotonic() - start
            self.estimate.done(cell, None if took is None else took - self._trained(cell))
            if not self.terminal and status != "cached":
                lasted = "" if took is None else f" {clock(took)}"
                print(f"[{self.done}/{self.total}] {status}{lasted}: {title}{self._left()}", file=sys.stderr)
        titles = list(self.running.values())
        more = f" and {len(titles) - 1} more" if len(titles) > 1 else ""
        text = f"{titles[0]}{more}" if titles else ""
        self.bar.update(self.task, completed=self.done, description=f"{text}{self._left()}")

    def _trained(self, cell: Cell) -> float:
        """Seconds of a cell that went into training, which its neighbours do not repeat."""
        row = None if self.store is None else self.store.get(cell)
        return 0.0 if row is None else float(row.timing.get("training") or 0.0)

    def _left(self) -> str:
        left = self.estimate.remaining()
        if left is None or self.done >= self.total:
            return ""
        unlike = self.estimate.guessed()
        return f"; about {about(left)} left" + (f" (a guess for {_times(unlike, 'cell')})" if unlike else "")


class Training:
    """Tells on stderr that a network is being trained: when it starts, and every ten seconds how long it will take.

    Silent unless the command watches the run.

    Args:
        what: name of the network.
    """

    def __init__(self, what: str, images: int, epochs: int) -> None:
        self.what, self.epochs = what, epochs
        self.watched = WATCHED in os.environ
        self.start = self.last = time.monotonic()
        self._tell(f"training {what or 'a network'} on {images:,} images, {_times(epochs, 'epoch')}")

    def epoch(self, done: int) -> None:
        """An epoch has ended."""
        now = time.monotonic()
        if done < self.epochs and now - self.last >= EVERY:
            self.last = now
            left = (now - self.start) / done * (self.epochs - done)
            self._tell(f"training {self.what or 'a network'}: epoch {done} of {self.epochs}, about {about(left)} left")

    def _tell(self, text: str) -> None:
        if self.watched:
            # on a terminal the line replaces the bar, which is then drawn again below it
            print(f"\r\x1b[2K{text}" if sys.stderr.isatty() else text, file=sys.stderr, flush=True)


def _times(n: int, word: str) -> str:
    return f"{n} {word}" if n == 1 else f"{n} {word}s"


def timing(results: Iterable[Result]) -> list[str]:
    """How the time of a run was spent, as lines of text: training, and the most expensive kinds of work."""
    spent: dict[str, float] = {}
    for row in results:
        seconds, training = row.timing.get("seconds", 0.0), row.timing.get("training", 0.0)
        spent["training"] = spent.get("training", 0.0) + training
        work = row.cell.work
        spent[work] = spent.get(work, 0.0) + max(0.0, seconds - training)
    total = sum(spent.values())
    if not total:
        return ["no row has a run time"]
    order = sorted((k for k in spent if spent[k]), key=lambda k: -spent[k])
    out = [f"{100 * spent[k] / total:5.1f} %  {clock(spent[k]):>12}  {k.replace('/', ': ', 1)}" for k in order[:12]]
    rest = sum(spent[k] for k in order[12:])
    out += [f"{100 * rest / total:5.1f} %  {clock(rest):>12}  everything else"] if rest else []
    return [*out, f"{clock(total)} in total, over all processes"]
