"""What a long run shows on stderr."""

from __future__ import annotations

import sys
from typing import Any


class Progress:
    """A bar on stderr when it is a terminal; a line for each cell that was computed when it is not."""

    def __init__(self) -> None:
        from rich import progress
        from rich.console import Console

        self.total, self.done, self.terminal = 0, 0, sys.stderr.isatty()
        self.running: dict[str, str] = {}
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
        """What is going on."""
        self.bar.update(self.task, description=text)

    def begin(self, total: int) -> None:
        """Now the number of cells is known."""
        self.total = total
        self.bar.update(self.task, total=total, description="")

    def step(self, cell: Any, status: str) -> None:
        """A cell starts or has ended."""
        if status == "started":
            self.running[cell.key] = cell.title
        else:
            self.running.pop(cell.key, None)
            self.done += 1
            if not self.terminal and status != "cached":
                print(f"[{self.done}/{self.total}] {status}: {cell.title}", file=sys.stderr)
        titles = list(self.running.values())
        more = f" and {len(titles) - 1} more" if len(titles) > 1 else ""
        self.bar.update(self.task, completed=self.done, description=f"{titles[0]}{more}" if titles else "")
