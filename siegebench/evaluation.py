"""Evaluate: one cell in, one Result out. What goes wrong inside becomes a row with status error."""

from __future__ import annotations

import time
import traceback
from pathlib import Path

from siegebench.cells import Cell, Flag, Result
from siegebench.environment import environment
from siegebench.errors import ContractError, NotApplicable
from siegebench.tracks import TRACKS
from siegebench.workspace import Workspace


def evaluate(cell: Cell, ws: Workspace, attempts: int = 1) -> Result:
    """The row of a cell. Never raises for what an entry does; Ctrl-C and the end of the process pass through."""
    start, trained = time.perf_counter(), ws.training
    try:
        result = TRACKS[cell.track].measure(cell, ws)
    except NotApplicable as error:
        result = Result(cell=cell, status="not_applicable", error={"message": str(error)})
    except (Exception, SystemExit) as error:  # foreign code may call sys.exit
        result = failed(cell, error)
    result.attempts = attempts
    result.env = {**environment(ws.device), "dtype": ws.settings.dtype, "batch": ws.settings.batch}
    result.timing = {"seconds": time.perf_counter() - start, "training": ws.training - trained}
    return result


def failed(cell: Cell, error: BaseException) -> Result:
    """An error row: what was raised, and where; no paths of this machine beyond the package's own files."""
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    tail = [f"{'/'.join(Path(frame.filename).parts[-2:])}:{frame.lineno} {frame.name}" for frame in frames]
    flags = [Flag("contract_broken", "fail", str(error)).as_dict()] if isinstance(error, ContractError) else []
    return Result(
        cell=cell,
        status="error",
        flags=flags,
        error={"type": type(error).__name__, "message": str(error)[:2000], "traceback": tail},
    )
