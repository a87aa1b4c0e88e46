"""Evaluate one cell. Errors inside become a row with status error."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from siegebench import registry, sources
from siegebench.cells import SLOTS, Cell, Flag, Result, digest, images_key, untrained
from siegebench.environment import environment
from siegebench.errors import ContractError, NotApplicable, SiegeError
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
    result.given = as_given(cell, ws.settings.specs, ws.classes(cell.data))
    if ws.settings.suite:
        result.given["suite"] = ws.settings.suite
    result.sources = sources.of(cell)
    return result


def now() -> str:
    """The time in UTC, to the second: `2026-01-31T12:00:00+00:00`."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def as_given(cell: Cell, specs: Mapping[str, Any], classes: Sequence[str] | None = None) -> dict[str, Any]:
    """The entries of a cell as the suite wrote them, by slot; without folders and files.

    Args:
        specs: specs by the digest of a description, as in `Settings`.
        classes: the names of the classes of the data.
    """

    def given(kind: str, description: Mapping[str, Any]) -> dict[str, Any] | None:
        spec = specs.get(digest(description)) or specs.get(digest(untrained(description)))
        return None if spec is None else registry.without_local(kind, spec)

    out: dict[str, Any] = {slot: given(slot, d) for slot in SLOTS if (d := getattr(cell, slot)) is not None}
    written = specs.get(images_key(cell.data)) or specs.get(digest(cell.data["source"]))
    names = {} if classes is None else {"classes": list(classes)}
    out["data"] = names if written is None else {**registry.without_local("dataset", written), **names}
    if cell.copy is not None:
        out["copy"] = given("model", cell.copy)
    if cell.surrogates:
        out["surrogates"] = [given("model", d) or {} for d in cell.surrogates]
    return {slot: spec for slot, spec in out.items() if spec}


def advice(error: BaseException) -> str:
    """What a user can do about an error whose message does not say it; empty for others."""
    text = str(error).lower()
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
        return (
            "the memory is too small even for one image at a time: run fewer processes at once (--slots 1), "
            "or use a smaller model, smaller images or --device cpu"
        )
    if isinstance(error, FileNotFoundError):
        return "a file is missing that was there when the suite was checked; put it back and run again"
    if isinstance(error, (ModuleNotFoundError, ImportError)):
        return "a package is missing or broken in this environment; `siegebench doctor` lists the optional ones"
    if isinstance(error, SystemExit):
        return "the entry, or a library that it uses, called sys.exit"
    return ""


def failed(cell: Cell, error: BaseException) -> Result:
    """An error row with type, message, advice and the last stack frames, without absolute paths."""
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    tail = [f"{'/'.join(Path(frame.filename).parts[-2:])}:{frame.lineno} {frame.name}" for frame in frames]
    flags = (
        [Flag("contract_broken", "fail", _unicode(str(error))).as_dict()] if isinstance(error, ContractError) else []
    )
    hint = "" if isinstance(error, SiegeError) else advice(error)
    message = str(error)[:2000] + (f" ({hint})" if hint else "")
    return Result(
        cell=cell,
        status="error",
        flags=flags,
        error={"type": type(error).__name__, "message": _unicode(message), "traceback": tail},
    )


def _unicode(text: str) -> str:
    """Replace lone surrogates, which cannot be encoded as UTF-8."""
    return text.encode("utf-8", "replace").decode()
