"""Reports from stored rows: HTML, Markdown, CSV, JSON. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from siegebench.cells import Result
from siegebench.errors import ConfigError, did_you_mean
from siegebench.leaderboard import export, page, rank
from siegebench.reuse import marked
from siegebench.store import Store

FORMATS = ("html", "md", "csv", "json")


def report(rows: Iterable[Result] | str | Path, format: str = "md", *, store: str | Path | None = None) -> str:
    """Ranked boards as `html`, `md`, `csv` or `json` text, from results or from the folder of a store.

    Args:
        store: where the results lie, so that a page shows the pictures beside them; `rows` if that is a folder.

    Raises:
        ConfigError: unknown format; no rows in the folder; a file that is not a valid row.
    """
    if format not in FORMATS:
        raise ConfigError(f"unknown format {format!r}. {did_you_mean(format, FORMATS)}")
    if isinstance(rows, (str, Path)):
        store = rows
        rows = list(Store(store).rows())
        if not rows:
            raise ConfigError(f"{store}: no rows here; run a suite first: siegebench run quickstart --store {store}")
    rows = marked(rows)
    boards = rank.boards(rows)
    if format == "html":
        if store is None:
            return page.render(boards, rows)
        beside = Store(store)
        return page.render(boards, rows, beside.pictures, lambda cell: beside.arrays(cell).get("ids", ()))
    return {"md": export.as_markdown, "csv": export.as_csv, "json": export.as_json}[format](boards)
