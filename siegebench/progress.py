"""Progress of a long run on stderr: cells done, cells running, and the time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from siegebench.cells import Cell, Result


class Estimate:
    """Estimates the time that the remaining cells will take, from the finished ones.

    A cell is expected to take the median time of the finished cells with the same kind of work (the same attack,
    detector, ...). If there is none, the median of all is used.
    """

    def __init__(self, cells: Sequence[Cell], slots: int) -> None:
        self.left = {cell.key: _work(cell) for cell in cells}
        self.slots = max(1, slots)
        self.seconds: dict[str, list[float]] = {}

    def done(self, cell: Cell, seconds: float | None) -> None:
        """A cell has ended; `seconds` is None when its row was already stored."""
        self.left.pop(cell.key, None)
        if seconds is not None:
            self.seconds.setdefault(_work(cell), []).append(seconds)

    def remaining(self) -> float | None:
        """Seconds left; None until a cell has been computed."""
        every = [s for found in self.seconds.values() for s in found]
        if not every:
            return None
        usual = _median(every)
        expected = [_median(self.seconds[work]) if work in self.seconds else usual for work in self.left.values()]
        return sum(expected) / min(self.slots, max(1, len(expected)))


def _work(cell: Cell) -> str:
    labels = cell.labels
    return "/".join([cell.track, *(labels[k] for k in ("attack", "measure", "detector", "corruption") if k in labels)])


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def clock(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class Progress:
    """A bar on stderr if it is a terminal, otherwise one line for each computed cell."""

    def __init__(self) -> None:
        from rich import progress
        from rich.console import Console

        self.total, self.done, self.terminal = 0, 0, sys.stderr.isatty()
        self.running: dict[str, str] = {}
        self.started: dict[str, float] = {}
        self.estimate = Estimate([], 1)
        self.bar = progress.Progress(
            progress.BarColumn(20), progress.MofNCompleteColumn(), progress.TimeElapsedColumn(),
            progress.TextColumn("{task.description}", markup=False),
            console=Console(stderr=True), disable=not self.terminal, transient=True,
        )  # fmt: skip
        self.task = self.bar.add_task("", total=None)

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.bar.stop()

    def say(self, text: str) -> None:
        """Show what is being done."""
        self.bar.update(self.task, description=text)

    def begin(self, cells: Sequence[Cell], slots: int) -> None:
        """Set the cells, and how many run at a time."""
        self.total, self.estimate = len(cells), Estimate(cells, slots)
        self.bar.update(self.task, total=self.total, description="")

    def step(self, cell: Cell, status: str) -> None:
        """A cell starts or has ended."""
        if status == "started":
            self.running[cell.key] = cell.title
            self.started[cell.key] = time.monotonic()
        else:
            start = self.started.pop(cell.key, None)
            self.running.pop(cell.key, None)
            self.done += 1
            self.estimate.done(cell, None if start is None or status == "cached" else time.monotonic() - start)
            if not self.terminal and status != "cached":
                print(f"[{self.done}/{self.total}] {status}: {cell.title}{self._left()}", file=sys.stderr)
        titles = list(self.running.values())
        more = f" and {len(titles) - 1} more" if len(titles) > 1 else ""
        text = f"{titles[0]}{more}" if titles else ""
        self.bar.update(self.task, completed=self.done, description=f"{text}{self._left()}")

    def _left(self) -> str:
        left = self.estimate.remaining()
        return "" if left is None or self.done >= self.total else f"; about {clock(left)} left"


def timing(results: Iterable[Result]) -> list[str]:
    """How the time of a run was spent, as lines of text: training, and the most expensive kinds of work."""
    spent: dict[str, float] = {}
    for row in results:
        seconds, training = row.timing.get("seconds", 0.0), row.timing.get("training", 0.0)
        spent["training"] = spent.get("training", 0.0) + training
        work = _work(row.cell)
        spent[work] = spent.get(work, 0.0) + max(0.0, seconds - training)
    total = sum(spent.values())
    if not total:
        return ["no row has a run time"]
    order = sorted((k for k in spent if spent[k]), key=lambda k: -spent[k])
    out = [f"{100 * spent[k] / total:5.1f} %  {clock(spent[k]):>12}  {k.replace('/', ': ', 1)}" for k in order[:12]]
    rest = sum(spent[k] for k in order[12:])
    out += [f"{100 * rest / total:5.1f} %  {clock(rest):>12}  everything else"] if rest else []
    return [*out, f"{clock(total)} in total, over all processes"]
