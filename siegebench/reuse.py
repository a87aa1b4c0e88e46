"""Whether a stored row is used, or its cell computed again. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from siegebench import sources
from siegebench.cells import ATTACKING, Cell, Flag, Result
from siegebench.heads import Head, heads
from siegebench.store import Store

if TYPE_CHECKING:
    from siegebench.workspace import Settings

# new: no row; failed: an error; stale: made by other source; again: asked for; images: they are not stored
Reason = Literal["", "new", "failed", "stale", "again", "images"]


def reason(cell: Cell, store: Store, settings: Settings) -> Reason:
    """Why a cell is computed; empty if its stored row is used."""
    row = store.get(cell)
    return _reason(cell, None if row is None else Head.of(row), store, settings)


def reasons(cells: Iterable[Cell], store: Store, settings: Settings) -> dict[str, Reason]:
    """`reason` of each cell, by key; rows that have not changed since the last call are not read again."""
    found = heads(cells := [*cells], store)
    return {cell.key: _reason(cell, found.get(cell.key), store, settings) for cell in cells}


def _reason(cell: Cell, row: Head | None, store: Store, settings: Settings) -> Reason:
    if row is None:
        return "new"
    if row.status == "error":
        return "failed"
    if settings.again and row.started <= settings.again:
        return "again"
    if not settings.keep_stale and sources.changed(cell, row.sources):
        return "stale"
    most = settings.save_images
    if most is not None and row.status == "ok" and cell.attack is not None and cell.track in ATTACKING:
        stored = store.images(cell)
        if stored is None or stored < min(most or row.attacked, row.attacked):
            return "images"
    return ""


def marked(rows: Iterable[Result]) -> list[Result]:
    """The rows, those made by other source with a flag that says so."""
    return [_flagged(row, found) if (found := sources.changed(row.cell, row.sources)) else row for row in rows]


def _flagged(row: Result, entries: list[str]) -> Result:
    evidence = f"made by other code of {', '.join(entries)}; `siegebench run` computes it again"
    return replace(row, flags=[*row.flags, Flag("stale", "flag", evidence).as_dict()])


def stale(cells: list[Cell], store: Store) -> dict[str, list[str]]:
    """The keys of cells whose rows were made by other source, with the entries that have changed."""
    found = heads(cells, store)
    used = [cell for cell in cells if cell.key in found and found[cell.key].status != "error"]
    return {cell.key: other for cell in used if (other := sources.changed(cell, found[cell.key].sources))}
