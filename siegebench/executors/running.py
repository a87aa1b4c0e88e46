"""One cell: compute it and store its row, unless the stored row is used or another run computes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from siegebench import sources
from siegebench.cells import Cell, Result
from siegebench.errors import ConfigError
from siegebench.memory import kept
from siegebench.reuse import reason
from siegebench.store import Store
from siegebench.workspace import Settings, Workspace

# called for each cell when it starts (`started`) and ends: ok, not_applicable, error, cached, crashed
Report = Callable[[Cell, str], None]
STARTED = "started"
BUSY = "busy"  # another run is computing the cell


class Executor(Protocol):
    """Runs cells and reports each end once. Rows are on disk before they are reported."""

    def run(self, cells: list[Cell], settings: Settings, report: Report) -> None: ...


_workspaces: dict[str, Workspace] = {}  # by the key of their settings


def run_cell(cell: Cell, settings: Settings, wait: bool = True, workspace: Workspace | None = None) -> str:
    """Compute and store one cell unless its row is used (see `reuse`); returns its status.

    A row that is replaced moves to the history, an error stays in the errors of the new row.

    Args:
        wait: wait for another run that computes the cell; otherwise return `busy` at once.
    """
    from siegebench import shards
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
        with kept():
            result = evaluate(cell, workspace).after(before)
        try:
            store.put(result)
        except (TypeError, ValueError, ConfigError) as error:  # an entry returned something that cannot be stored
            refused = failed(cell, error).after(before)
            refused.env, refused.timing, refused.sources = result.env, result.timing, result.sources
            store.put(refused)
            result = refused
        if result.status != "error":
            shards.remove(store.root, cell.key)
    return result.status


def write_failure(cell: Cell, settings: Settings, error: Exception, times: int) -> bool:
    """Write an error for a cell whose worker did not, after `times` attempts; False if its row is used after all."""
    from siegebench.evaluation import failed, now

    store = Store(settings.root)
    with store.lock(cell.key):
        if not reason(cell, store, settings):
            return False  # another run has computed it
        result = failed(cell, error)
        result.timing = {"ended": now()}
        result.sources = sources.of(cell)
        store.put(result.after(_failure(store, cell), times))
    return True


def _failure(store: Store, cell: Cell) -> Result | None:
    """The stored row of a cell if it is an error, which the next row keeps."""
    row = store.get(cell)
    return row if row is not None and row.status == "error" else None
