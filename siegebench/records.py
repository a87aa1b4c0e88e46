"""Which cells a suite had when it was last run, kept in its store. Needs no torch.

    ROOT/suites/NAME.json         the name, the overrides, the keys of its cells, and an id
    ROOT/suites/NAME-HASH.json    the same of a run with overrides

The id is random and stays. What is made from the rows elsewhere, such as a run of W&B, carries it, so that it is
updated and not made a second time.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from siegebench.cells import Result, digest
from siegebench.errors import ConfigError, did_you_mean
from siegebench.files import write_atomic
from siegebench.store import Store

UNKNOWN = "rows"  # name of the rows that do not say which suite they are from


class Record(BaseModel):
    """One suite of a store.

    Attributes:
        suite: its name.
        overrides: what was given by `--set`, without folders.
        id: 16 hexadecimal digits.
        cells: keys of its cells.
        links: ids of what was made from it elsewhere, by place.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    suite: str
    overrides: list[str] = Field(default=[])
    id: str = Field(pattern=r"^[0-9a-f]{16}$")
    cells: list[str]
    links: dict[str, str] = Field(default={})

    @property
    def name(self) -> str:
        """Its name on the command line, unique in a store."""
        return _name(self.suite, self.overrides)

    @property
    def title(self) -> str:
        """`try defense=jpeg`."""
        return " ".join((self.suite, *self.overrides))


def _name(suite: str, overrides: Sequence[str]) -> str:
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "_" for c in suite)[:60] or UNKNOWN
    return f"{safe}-{digest(list(overrides))[:6]}" if overrides else safe


def _path(store: Store, name: str) -> Path:
    return store.root / "suites" / f"{name}.json"


def _read(path: Path) -> Record | None:
    try:
        return Record.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{path}: {where}: {first['msg']}; remove the file and run the suite again") from None


def keep(store: Store, suite: str, overrides: Iterable[str], cells: Iterable[str]) -> Record:
    """Write which cells a suite has; its id and links stay. Nothing is written if nothing has changed.

    Raises:
        ConfigError: when its file is not a valid record.
    """
    overrides, cells = list(overrides), list(cells)
    name = _name(suite, overrides)
    with store.lock(f"suite-{digest(name)[:16]}"):
        before = _read(_path(store, name))
        identity = secrets.token_hex(8) if before is None else before.id
        links = {} if before is None else before.links
        record = Record(suite=suite, overrides=overrides, id=identity, cells=cells, links=links)
        if record != before:
            _write(store, record)
    return record


def link(store: Store, record: Record, place: str, id: str) -> None:
    """Remember the id of what was made from a suite at a place."""
    with store.lock(f"suite-{digest(record.name)[:16]}"):
        now = _read(_path(store, record.name)) or record
        _write(store, now.model_copy(update={"links": {**now.links, place: id}}))


def _write(store: Store, record: Record) -> None:
    write_atomic(_path(store, record.name), (record.model_dump_json(indent=1) + "\n").encode())


def suites(store: Store) -> tuple[list[tuple[Record, list[Result]]], int]:
    """Every suite of a store with its rows, and the number of other rows, which their suites no longer have.

    Rows of earlier versions, which kept no records, are told apart by the suite that they name; a record is made.

    Raises:
        ConfigError: with the file, when a row or a record is not valid.
    """
    rows = {row.cell.key: row for row in store.rows()}
    records = [r for path in sorted((store.root / "suites").glob("*.json")) if (r := _read(path)) is not None]
    named = {record.name for record in records}
    recorded = {key for record in records for key in record.cells}
    others: dict[str, tuple[str, list[str], list[str]]] = {}
    left = 0
    for key in sorted(rows.keys() - recorded):
        suite, overrides = _origin(rows[key])
        if _name(suite, overrides) in named:
            left += 1
        else:
            others.setdefault(_name(suite, overrides), (suite, overrides, []))[2].append(key)
    records += [keep(store, *others[name]) for name in sorted(others)]
    return [(record, [rows[key] for key in record.cells if key in rows]) for record in records], left


def _origin(row: Result) -> tuple[str, list[str]]:
    """The suite that a row names, and its overrides."""
    found: Any = row.given.get("suite")
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        return UNKNOWN, []
    return Path(found["name"]).stem, [str(text) for text in found.get("set") or ()]


def find(store: Store, name: str) -> tuple[Record, list[Result]]:
    """A suite of a store with its rows: by its name, or by that of the suite if it was run with one set of overrides.

    Raises:
        ConfigError: with the names that are known.
    """
    every, _ = suites(store)
    found = [pair for pair in every if name in (pair[0].name, pair[0].title)]
    found = found or [pair for pair in every if pair[0].suite == name]
    if len(found) == 1:
        return found[0]
    known = [record.name for record, _ in found or every]
    told = "several suites are named" if found else "no rows of the suite"
    raise ConfigError(f"{store.root}: {told} {name!r}. {did_you_mean(name, known)}")
