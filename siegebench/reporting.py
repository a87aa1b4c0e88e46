"""Reports from stored rows: HTML, Markdown, CSV, JSON. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from siegebench import published
from siegebench.cells import Result
from siegebench.errors import ConfigError, MissingExtra, did_you_mean
from siegebench.leaderboard import export, page, rank
from siegebench.reuse import marked
from siegebench.store import Store
from siegebench.submissions.board import accepted, beside

FORMATS = ("html", "md", "csv", "json", "lm_eval")


def report(
    rows: Iterable[Result] | str | Path,
    format: str = "md",
    *,
    store: str | Path | None = None,
    submissions: str | Path | None = None,
) -> str:
    """Ranked boards as `html`, `md`, `csv`, `json` or `lm_eval` text, from results or from the folder of a store.

    Figures that `siegebench import` has put into the store stand beside the measured numbers.

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
    boards = rank.boards(rows, [] if store is None else published.read(Path(store)))
    if format == "html":
        if store is None:
            return page.render(boards, rows)
        beside_rows = Store(store)
        return page.render(boards, rows, beside_rows.pictures, lambda cell: beside_rows.arrays(cell).get("ids", ()))
    write = {"md": export.as_markdown, "csv": export.as_csv, "json": export.as_json, "lm_eval": export.as_lm_eval}
    return write[format](boards)


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


def to_pandas(rows: Iterable[Result] | str | Path) -> Any:
    """A data frame with one line per row: entries, track, data, threat, seed, status, metrics, counts, flags, seconds.

    A metric `robust_acc` is a column of its name; ends of its interval are `robust_acc.low` and `robust_acc.high`.
    Needs pandas (`pip install 'siegebench[pandas]'`).

    Args:
        rows: results, or the folder of a store.

    Raises:
        MissingExtra: without pandas.
        ConfigError: no rows in the folder; a file that is not a valid row.
    """
    try:
        import pandas
    except ImportError:
        raise MissingExtra("pandas", "pandas", "to_pandas") from None
    results = stored(rows) if isinstance(rows, (str, Path)) else list(rows)
    return pandas.DataFrame([_flat(row) for row in results])


def _flat(row: Result) -> dict[str, Any]:
    """A row as one level of plain values."""
    cell, threat = row.cell, row.cell.threat or {}
    out: dict[str, Any] = {"key": cell.key, "track": cell.track, **cell.labels, "split": cell.data.get("split")}
    out |= {name: threat.get(name) for name in ("norm", "eps", "access", "queries", "target") if name in threat}
    out |= {"images": cell.data.get("count"), "seed": cell.seed, "adaptive": cell.adaptive, "status": row.status}
    for name, figure in row.metrics.items():
        out[name] = figure.get("value")
        out |= {f"{name}.{end}": figure[end] for end in ("low", "high", "n") if figure.get(end) is not None}
    out |= {f"counts.{name}": value for name, value in row.counts.items()}
    out["flags"] = " ".join(sorted({flag["id"] for flag in row.flags}))
    out["seconds"] = row.timing.get("seconds")
    return out
