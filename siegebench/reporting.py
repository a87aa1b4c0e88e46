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


def report(rows: Iterable[Result] | str | Path, format: str = "md") -> str:
    """Ranked boards as `html`, `md`, `csv` or `json` text, from results or from the folder of a store.

    Raises:
        ConfigError: unknown format; no rows in the folder; a file that is not a valid row.
    """
    if format not in FORMATS:
        raise ConfigError(f"unknown format {format!r}. {did_you_mean(format, FORMATS)}")
    if isinstance(rows, (str, Path)):
        folder = rows
        rows = list(Store(folder).rows())
        if not rows:
            raise ConfigError(f"{folder}: no rows here; run a suite first: siegebench run quickstart --store {folder}")
    rows = marked(rows)
    boards = rank.boards(rows)
    if format == "html":
        return page.render(boards, rows)
    return {"md": export.as_markdown, "csv": export.as_csv, "json": export.as_json}[format](boards)
