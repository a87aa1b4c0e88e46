"""One cell after another, in this process."""

from __future__ import annotations

from siegebench.cells import Cell
from siegebench.executors.running import BUSY, STARTED, Report, run_cell
from siegebench.workspace import Settings, Workspace


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
