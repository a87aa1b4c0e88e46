"""Evaluate one cell. Errors inside become a row with status error."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from siegebench import registry
from siegebench.cells import SLOTS, Cell, Flag, Result, digest
from siegebench.environment import environment
from siegebench.errors import ContractError, NotApplicable
from siegebench.tracks import TRACKS
from siegebench.workspace import Workspace


def evaluate(cell: Cell, ws: Workspace) -> Result:
    """The row of a cell. Never raises for errors of an entry; KeyboardInterrupt is not caught."""
    started, start, trained = now(), time.perf_counter(), ws.training
    try:
        result = TRACKS[cell.track].measure(cell, ws)
    except NotApplicable as error:
        result = Result(cell=cell, status="not_applicable", error={"message": str(error)})
    except (Exception, SystemExit) as error:  # foreign code may call sys.exit
        result = failed(cell, error)
    result.env = {**environment(ws.device), "dtype": ws.settings.dtype, "batch": ws.settings.batch}
    result.timing = {
        "seconds": time.perf_counter() - start,
        "training": ws.training - trained,
        "started": started,
        "ended": now(),
    }
    result.given = as_given(cell, ws.settings.specs)
    if ws.settings.suite:
        result.given["suite"] = ws.settings.suite
    return result


def now() -> str:
    """The time in UTC, to the second: `2026-01-31T12:00:00+00:00`."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def as_given(cell: Cell, specs: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a cell as the suite wrote them, by slot; without folders and files.

    Args:
        specs: specs by the digest of a description, as in `Settings`.
    """

    def given(kind: str, description: Mapping[str, Any]) -> dict[str, Any] | None:
        bare = {k: v for k, v in description.items() if k != "train_seed"}
        spec = specs.get(digest(description)) or specs.get(digest(bare))
        return None if spec is None else registry.without_local(kind, spec)

    out: dict[str, Any] = {slot: given(slot, d) for slot in SLOTS if (d := getattr(cell, slot)) is not None}
    out["data"] = given("dataset", cell.data["source"])
    if cell.surrogates:
        out["surrogates"] = [given("model", d) or {} for d in cell.surrogates]
    return {slot: spec for slot, spec in out.items() if spec}


def failed(cell: Cell, error: BaseException) -> Result:
    """An error row with type, message and the last stack frames, without absolute paths."""
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    tail = [f"{'/'.join(Path(frame.filename).parts[-2:])}:{frame.lineno} {frame.name}" for frame in frames]
    flags = (
        [Flag("contract_broken", "fail", _unicode(str(error))).as_dict()] if isinstance(error, ContractError) else []
    )
    return Result(
        cell=cell,
        status="error",
        flags=flags,
        error={"type": type(error).__name__, "message": _unicode(str(error)[:2000]), "traceback": tail},
    )


def _unicode(text: str) -> str:
    """Replace lone surrogates, which cannot be encoded as UTF-8."""
    return text.encode("utf-8", "replace").decode()
