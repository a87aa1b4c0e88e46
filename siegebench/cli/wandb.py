"""`siegebench wandb`: copies stored rows to Weights & Biases, and writes reports there; `run --wandb` uses it too.

The package wandb is imported only when something is written.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from siegebench.cli.options import DEFAULT_STORE, Json, StorePath
from siegebench.errors import ConfigError

if TYPE_CHECKING:
    from siegebench.cells import Cell, Result
    from siegebench.leaderboard.board import Board
    from siegebench.leaderboard.wandb_session import Target
    from siegebench.progress import Progress
    from siegebench.records import Record

app = typer.Typer(name="wandb", help="Copy stored rows to Weights & Biases, and write reports there.")
INTERRUPTED = 130


class Runs(StrEnum):
    """What becomes a run of W&B."""

    per_suite = "per_suite"
    per_line = "per_line"
    per_cell = "per_cell"


Project = Annotated[str, typer.Option(help="W&B project.")]
Entity = Annotated[str | None, typer.Option(help="W&B user or team; default: that of the login.")]
OneRun = Annotated[Runs, typer.Option(help="One run for the suite, for each line of its boards, or for each cell.")]


def target(mode: str | None, store: Path, project: str, entity: str | None) -> Target | None:
    """Where W&B's runs go; None without a mode. Refuses what cannot work, before anything is computed.

    Raises:
        ConfigError, MissingExtra: unknown mode; wandb is not installed.
    """
    if mode is None:
        return None
    from siegebench.leaderboard.wandb_session import Target

    return Target(store, project, entity, mode).checked()


class Watch:
    """Tells W&B of a run of a suite: its progress, and at the end its boards and rows. Without a target it is silent.

    Args:
        record: the suite; None if only one of its cells is computed.
    """

    def __init__(
        self, to: Target | None, runs: Runs, record: Record | None, cells: Sequence[Cell], progress: Progress
    ) -> None:
        self.to, self.runs, self.record, self.cells, self.progress = to, runs, record, cells, progress
        self.live: Any = None

    def __enter__(self) -> Watch:
        if self.to is not None and self.record is not None and self.runs is Runs.per_suite:
            from siegebench.leaderboard.wandb_runs import Live

            self.live = Live(self.record, self.to, len(self.cells))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is not None and self.live is not None:
            self.live.interrupted(INTERRUPTED if issubclass(kind, KeyboardInterrupt) else 1)
            _leave()

    def step(self, cell: Cell, status: str) -> None:
        """A cell starts or has ended; its row is on disk."""
        self.progress.step(cell, status)
        if self.live is not None and status != "started":
            self.live.ended(status, self.progress.estimate.remaining())

    def write(self, boards: Sequence[Board], rows: Sequence[Result], page: str) -> None:
        """Write what the suite has now. No error leaves it."""
        if self.to is None:
            return
        from siegebench.leaderboard.wandb_session import told, warn

        try:
            places = self._written(self.to, boards, rows, page)
        except Exception as error:
            warn(f"nothing was written ({told(error)})")
            places = []
            if self.live is not None:
                self.live.interrupted(1)
        _leave()
        if places:
            print(f"W&B: {_where(places)}", file=sys.stderr)

    def _written(self, to: Target, boards: Sequence[Board], rows: Sequence[Result], page: str) -> list[str]:
        """Where the runs are; nowhere if W&B failed."""
        from siegebench.leaderboard.wandb_content import of_row
        from siegebench.leaderboard.wandb_runs import write

        if self.record is None:  # one cell: the run of the suite stays as it is
            sessions = write(map(of_row, rows), to)
        elif self.live is None:
            sessions = write(_contents(self.record, self.runs, boards, rows, page, to.store), to)
        else:
            self.live.write(_contents(self.record, self.runs, boards, rows, page, to.store)[0])
            sessions = [self.live.session]
        return [] if any(session.failed for session in sessions) else [session.place for session in sessions]


def _contents(
    record: Any, runs: Runs, boards: Sequence[Board], rows: Sequence[Result], page: str, store: Path
) -> list[Any]:
    from siegebench.leaderboard.wandb_content import contents
    from siegebench.store import Store

    return contents(runs.value, record, boards, rows, page, Store(store).pictures)


def _leave() -> None:
    from siegebench.leaderboard.wandb_session import leave

    leave()


def _where(places: Sequence[str]) -> str:
    return f"{len(places)} runs, the first is {places[0]}" if len(places) > 1 else "".join(places) or "no runs"


def _chosen(store: Path, suite: str | None) -> tuple[list[tuple[Record, list[Result]]], int]:
    """The suites of a store with their rows, or the one that is named; and how many rows no suite has any more."""
    from siegebench import records
    from siegebench.store import Store

    found, left = records.suites(Store(store)) if suite is None else ([records.find(Store(store), suite)], 0)
    found = [(record, rows) for record, rows in found if rows]
    if not found:
        raise ConfigError(f"{store}: no rows here; run a suite first: siegebench run quickstart --store {store}")
    return found, left


@app.command()
def push(
    suite: Annotated[str | None, typer.Argument(help="Only this suite of the store.")] = None,
    store: StorePath = DEFAULT_STORE,
    mode: Annotated[str, typer.Option(help="offline: write to a folder; online: also send.")] = "offline",
    project: Project = "siegebench",
    entity: Entity = None,
    runs: OneRun = Runs.per_suite,
    as_json: Json = False,
) -> None:
    """Write the runs of all suites of a store from its rows. A run that exists is updated.

    Exit code 1 if W&B failed.
    """
    from siegebench.leaderboard import page, rank
    from siegebench.leaderboard.wandb_runs import write
    from siegebench.leaderboard.wandb_session import Target
    from siegebench.reuse import marked
    from siegebench.store import Store

    to = Target(store, project, entity, mode).checked()
    found, left = _chosen(store, suite)
    told: list[dict[str, Any]] = []
    failed = False
    for record, rows in found:
        rows = marked(rows)
        boards = rank.boards(rows)
        whole = page.render(boards, rows, Store(store).pictures) if runs is Runs.per_suite else ""
        sessions = write(_contents(record, runs, boards, rows, whole, store), to)
        failed = failed or any(session.failed for session in sessions)
        made = [{"id": s.id, "place": s.place, "failed": s.failed} for s in sessions]
        told.append({"suite": record.name, "rows": len(rows), "boards": len(boards), "runs": made})
        if not as_json and not failed:
            print(f"{record.name}: {len(rows)} rows, {len(boards)} boards: {_where([s.place for s in sessions])}")
        if failed:
            break
    _leave()
    if as_json:
        print(json.dumps({"mode": to.mode, "suites": told, "rows_left_out": left}, indent=1))
    elif to.mode == "offline" and not failed:
        print(f"send with: wandb sync {store}/wandb/offline-run-*")
    if left:
        print(f"{left} rows are left out: their suites no longer have these cells", file=sys.stderr)
    if failed:
        raise typer.Exit(1)


@app.command()
def report(
    suite: Annotated[str, typer.Argument(help="A suite of the store.")],
    store: StorePath = DEFAULT_STORE,
    project: Project = "siegebench",
    entity: Entity = None,
    runs: Annotated[
        Runs, typer.Option(help="What `push` wrote: panels of the suite's run, or of the runs of its lines.")
    ] = Runs.per_suite,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what W&B would be sent, as JSON; needs no login.")
    ] = False,
    new: Annotated[bool, typer.Option("--new", help="Make another report, do not update the one of before.")] = False,
    as_json: Json = False,
) -> None:
    """Write a W&B report about a suite: its boards, curves, flags and glossary. A report that exists is updated.

    Its panels show the tables of the run that `run --wandb online` or `wandb push --mode online` has sent.
    """
    from siegebench import records
    from siegebench.leaderboard import rank, wandb_report
    from siegebench.leaderboard.wandb_content import of_suite
    from siegebench.leaderboard.wandb_session import default_entity
    from siegebench.reuse import marked
    from siegebench.store import Store

    if runs is Runs.per_cell:
        raise ConfigError("--runs per_cell: a report is about boards; per_suite or per_line")
    wandb_report.check()
    ((record, found),), _ = _chosen(store, suite)
    rows = marked(found)
    boards = rank.boards(rows)
    content = of_suite(record, boards, rows, pictures=Store(store).pictures)
    if dry_run:
        print(wandb_report.as_json(wandb_report.build(record, content, boards, runs.value, project)))
        return
    owner = entity or default_entity()
    place = f"report {owner}/{project} {runs.value}"
    known = "" if new else record.links.get(place, "")
    made = wandb_report.build(record, content, boards, runs.value, project, owner)
    id_, url = wandb_report.save(made, known)
    records.link(Store(store), record, place, id_)
    print(json.dumps({"id": id_, "url": url, "updated": bool(known)}) if as_json else f"report: {url}")
