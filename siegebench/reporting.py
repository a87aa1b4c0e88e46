"""Reports from stored rows: HTML, Markdown, CSV, JSON. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from siegebench.cells import Result
from siegebench.errors import ConfigError, did_you_mean
from siegebench.leaderboard import export, page, rank
from siegebench.reuse import marked
from siegebench.store import Store
from siegebench.submissions.board import accepted, beside

FORMATS = ("html", "md", "csv", "json")


def report(
    rows: Iterable[Result] | str | Path,
    format: str = "md",
    *,
    store: str | Path | None = None,
    submissions: str | Path | None = None,
) -> str:
    """Ranked boards as `html`, `md`, `csv` or `json` text, from results or from the folder of a store.

    Args:
        store: where the results lie, so that a page shows the pictures beside them; `rows` if that is a folder.
        submissions: a folder of submissions whose rows are shown too, with their status.

    Raises:
        ConfigError: unknown format; no rows in the folder; a file that is not a valid row; a refused submission.
    """
    if format not in FORMATS:
        raise ConfigError(f"unknown format {format!r}. {did_you_mean(format, FORMATS)}")
    if isinstance(rows, (str, Path)):
        store = rows
        rows = stored(rows, submissions)
    else:
        rows = marked(rows if submissions is None else beside(rows, accepted(Path(submissions))))
    boards = rank.boards(rows)
    if format == "html":
        return page.render(boards, rows, None if store is None else Store(store).pictures)
    return {"md": export.as_markdown, "csv": export.as_csv, "json": export.as_json}[format](boards)


def stored(store: str | Path, submissions: str | Path | None = None) -> list[Result]:
    """The rows of a store, and those of submissions in other cells; marked where other source made them.

    Raises:
        ConfigError: when there are none, or a file is refused.
    """
    rows = list(Store(store).rows())
    if submissions is not None:
        rows = beside(rows, accepted(Path(submissions)))
    if not rows:
        raise ConfigError(f"{store}: no rows here; run a suite first: siegebench run quickstart --store {store}")
    return marked(rows)
