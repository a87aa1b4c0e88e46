"""Heads: the few fields that decide whether a stored row is used, so that rows are compared without reading them.

ROOT/.heads.json has the head of each row beside the identity of its file: inode, size and times of the last changes. A
head is taken from there only while its file has this identity, otherwise the row is read and checked as ever. So the
file may be removed, be old, come from another run or from another machine: rows decide. Needs no torch.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from siegebench.cells import Cell, Result
from siegebench.files import write_atomic
from siegebench.store import Store

FORM = 1  # of the file; another one is not read
SETTLED = 2.0  # seconds: a file that changed later may change again without another time of change
Identity = list[int]


@dataclass(frozen=True)
class Head:
    """What decides whether a row is used.

    Attributes:
        attacked: images that were attacked.
    """

    key: str
    status: str
    started: str = ""
    sources: Mapping[str, str] = field(default_factory=dict)
    attacked: int = 0

    @classmethod
    def of(cls, row: Result) -> Head:
        attacked = int(row.counts.get("attacked", 0))
        return cls(row.cell.key, row.status, str(row.timing.get("started", "")), row.sources, attacked)


class Heads:
    """The heads of a store."""

    def __init__(self, store: Store) -> None:
        self._store, self._file = store, store.root / ".heads.json"
        self._known = _read(self._file)
        self._learned = False

    def get(self, cell: Cell) -> Head | None:
        """The head of the stored row of a cell; None without a valid row."""
        name = cell.file
        path = f"{self._store.root}/rows/{name}"
        before = _identity(path)
        known = self._known.get(name)
        if known is None or known[0] != before:
            row = None if before is None else self._store.get(cell)
            known = None if before is None or row is None else (before, Head.of(row))
            self._learn(name, path, known)
        return known[1] if known is not None and known[1].key == cell.key else None

    def _learn(self, name: str, path: str, found: Any) -> None:
        """Keep what was read, if the file has not changed since and cannot change unseen."""
        settled = found is not None and max(found[0][2:]) < (time.time() - SETTLED) * 1e9
        if settled and found[0] == _identity(path):
            self._known[name], self._learned = found, True
        elif self._known.pop(name, None) is not None:
            self._learned = True

    def keep(self) -> None:
        """Write the file if it lacks something; not where the store cannot be written."""
        if not self._learned or not (self._store.root / "rows").is_dir():
            return
        rows = {name: [of, asdict(head)] for name, (of, head) in self._known.items()}
        try:
            write_atomic(self._file, json.dumps({"form": FORM, "rows": rows}, separators=(",", ":")).encode())
        except OSError:
            return
        self._learned = False


def heads(cells: Iterable[Cell], store: Store) -> dict[str, Head]:
    """The heads of the cells that have a valid row, by key."""
    known = Heads(store)
    found = {cell.key: head for cell in cells if (head := known.get(cell)) is not None}
    known.keep()
    return found


def _identity(path: str) -> Identity | None:
    """Changes with every change of a file; None without the file."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return [found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _read(file: Path) -> dict[str, tuple[Identity, Head]]:
    try:
        said = json.loads(file.read_bytes())
        rows = said["rows"] if said["form"] == FORM else {}
        return {name: (of, Head(**head)) for name, (of, head) in rows.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # removed, or written by something else
        return {}
