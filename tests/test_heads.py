"""Heads of rows: rows decide, whatever the file of heads says."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from siegebench import heads as module
from siegebench.cells import Result
from siegebench.heads import Head, heads
from siegebench.reuse import reason, reasons
from siegebench.store import Store
from siegebench.workspace import Settings
from tests.test_store import cell, result

OLD = 100  # seconds: long enough ago to be settled


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store with one row, of which the heads are written."""
    store = Store(tmp_path)
    store.put(result())
    later = time.time() + OLD
    monkeypatch.setattr(module.time, "time", lambda: later)
    assert heads([cell()], store)[cell().key].status == "ok"
    assert (tmp_path / ".heads.json").exists()
    return store


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of the rows that are read."""
    seen: list[str] = []
    get = Store.get

    def counted(self: Store, wanted: Any) -> Result | None:
        seen.append(wanted.key)
        return get(self, wanted)

    monkeypatch.setattr(Store, "get", counted)
    return seen


def test_a_row_that_has_not_changed_is_not_read(store: Store, reads: list[str]) -> None:
    assert reasons([cell()], store, Settings(root=str(store.root))) == {cell().key: ""}
    assert not reads
    assert reason(cell(), store, Settings(root=str(store.root))) == ""


def test_a_row_that_has_changed_is_read_even_with_its_old_size_and_time(store: Store, reads: list[str]) -> None:
    path = store.path(cell())
    before = path.stat()
    torn = path.read_bytes().replace(b'"status": "ok"', b'"status": "xx"')
    path.write_bytes(torn)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert heads([cell()], store) == {}
    assert reads == [cell().key]
    assert path.with_suffix(".corrupt").exists()


def test_a_row_that_is_replaced_or_removed_is_seen(store: Store) -> None:
    failed = result()
    failed.status, failed.error = "error", {"type": "ValueError", "message": "no"}
    store.put(failed)
    assert reasons([cell()], store, Settings(root=str(store.root))) == {cell().key: "failed"}
    store.path(cell()).unlink()
    assert reasons([cell()], store, Settings(root=str(store.root))) == {cell().key: "new"}


def test_a_row_that_may_change_again_unseen_is_not_kept(tmp_path: Path, reads: list[str]) -> None:
    store = Store(tmp_path)
    store.put(result())
    reads.clear()
    for count in (1, 2):  # just written: the next write could have the same time of change
        assert heads([cell()], store)
        assert len(reads) == count


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"form": 0, "rows": {}}',
        b'{"form": 1, "rows": {"x": 3}}',
        b"\xff",
        b'{"form": 1, "rows": 2}',
    ],
)
def test_a_file_of_heads_that_is_none_is_made_again(store: Store, reads: list[str], content: bytes) -> None:
    (store.root / ".heads.json").write_bytes(content)
    assert heads([cell()], store)[cell().key].status == "ok"
    assert reads == [cell().key]
    assert json.loads((store.root / ".heads.json").read_bytes())["form"] == module.FORM


def test_heads_of_a_copied_store_are_not_believed(store: Store, tmp_path: Path, reads: list[str]) -> None:
    other = Store(tmp_path / "copy")
    other.put(result())
    os.replace(store.root / ".heads.json", other.root / ".heads.json")
    reads.clear()
    assert heads([cell()], other)
    assert reads == [cell().key]


def test_a_store_that_cannot_be_written_is_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    (store.root / ".heads.json").unlink()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_atomic", full)
    assert heads([cell()], store)


def test_a_head_says_what_decides() -> None:
    row = result()
    row.counts, row.timing, row.sources = {"attacked": 7.0}, {"started": "2026-01-01T00:00:00Z"}, {"attack": "a" * 16}
    assert Head.of(row) == Head(row.cell.key, "ok", "2026-01-01T00:00:00Z", {"attack": "a" * 16}, 7)
