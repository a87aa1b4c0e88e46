"""Whether a stored row is used, or its cell computed again. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from siegebench import sources
from siegebench.cells import ATTACKING, Cell, Flag, Result
from siegebench.store import Store

if TYPE_CHECKING:
    from siegebench.workspace import Settings

# new: no row; failed: an error; stale: made by other source; again: asked for; images: they are not stored
Reason = Literal["", "new", "failed", "stale", "again", "images"]


def reason(cell: Cell, store: Store, settings: Settings) -> Reason:
    """Why a cell is computed; empty if its stored row is used."""
    row = store.get(cell)
    if row is None:
        return "new"
    if row.status == "error":
        return "failed"
    if settings.again and str(row.timing.get("started", "")) <= settings.again:
        return "again"
    if not settings.keep_stale and sources.changed(row):
        return "stale"
    most = settings.save_images
    if most is not None and row.status == "ok" and cell.attack is not None and cell.track in ATTACKING:
        attacked = int(row.counts.get("attacked", 0))
        stored = store.images(cell)
        if stored is None or stored < min(most or attacked, attacked):
            return "images"
    return ""


def marked(rows: Iterable[Result]) -> list[Result]:
    """The rows, those made by other source with a flag that says so."""
    return [_flagged(row, found) if (found := sources.changed(row)) else row for row in rows]


def _flagged(row: Result, entries: list[str]) -> Result:
    evidence = f"made by other code of {', '.join(entries)}; `siegebench run` computes it again"
    return replace(row, flags=[*row.flags, Flag("stale", "flag", evidence).as_dict()])


def stale(cells: list[Cell], store: Store) -> dict[str, list[str]]:
    """The keys of cells whose rows were made by other source, with the entries that have changed."""
    rows = [row for cell in cells if (row := store.get(cell)) is not None and row.status != "error"]
    return {row.cell.key: found for row in rows if (found := sources.changed(row))}
