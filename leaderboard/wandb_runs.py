"""Writes stored rows, and the progress of a run, to W&B. Nothing depends on it.

A suite is one run with its boards as tables, its charts, its pictures and its rows. The run is written again from the
stored rows at any time, under the same id.
"""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from siegebench.cells import digest
from siegebench.records import Record

from .wandb_charts import Chart
from .wandb_content import DONE, FAILED, LEFT, Content
from .wandb_session import Session, Target
from .wandb_tables import Sheet

EVERY = 1.0  # seconds between two messages about the progress
ENDED_BADLY = ("error", "crashed")


def write(contents: Iterable[Content], target: Target) -> list[Session]:
    """Write each content as one run, until W&B fails; returns the sessions, which say where the runs are."""
    sessions: list[Session] = []
    for content in contents:
        session = _start(content, target)
        put(session, content)
        session.close(int(content.failed))
        sessions.append(session)
        if session.failed:
            break
    return sessions


def _start(content: Content, target: Target) -> Session:
    return Session(
        target, content.id, name=content.name[:128], group=content.group[:128], job_type=content.kind,
        tags=list(dict.fromkeys(content.tags)), config=content.config,
    )  # fmt: skip


def put(session: Session, content: Content) -> None:
    """Write everything of a content into an open run, in place of what it had before."""

    def everything(wandb: Any, run: Any) -> None:
        if content.progress:
            _over_progress(wandb, run)
        run.config.update(content.config, allow_val_change=True)
        for name in {*run.summary.keys()} - content.names:  # of lines that the boards no longer have
            if name.startswith(("primary/", "left_out/")):
                del run.summary[name]
        run.summary.update(content.summary)
        logged: dict[str, Any] = dict(content.progress)
        logged |= {name: _table(wandb, sheet) for name, sheet in content.tables.items()}
        logged |= {name: _chart(wandb, chart) for name, chart in content.charts.items()}
        logged |= {
            name: [wandb.Image(_opened(file), caption=caption) for caption, file in shown]
            for name, shown in content.pictures.items()
        }
        if logged:
            run.log(logged)
        if content.files:
            _log_files(wandb, run, content)

    session.do(everything)


def _over_progress(wandb: Any, run: Any) -> None:
    """Curves have the number of cells that are done on their horizontal axis."""
    run.define_metric("progress/*", step_metric=DONE)


def _table(wandb: Any, sheet: Sheet) -> Any:
    return wandb.Table(columns=list(sheet.columns), data=[list(row) for row in sheet.rows])


def _chart(wandb: Any, chart: Chart) -> Any:
    return wandb.plot_table(
        vega_spec_name=chart.preset, data_table=_table(wandb, chart.table), fields=chart.fields,
        string_fields={"title": chart.title},
    )  # fmt: skip


def _opened(png: bytes) -> Any:
    from PIL import Image

    image = Image.open(io.BytesIO(png), formats=("PNG",))
    image.load()
    return image


def _log_files(wandb: Any, run: Any, content: Content) -> None:
    """One artifact. Its aliases are `latest` and the hash of its rows; equal content makes no new version."""
    with tempfile.TemporaryDirectory() as folder:
        artifact = wandb.Artifact(f"siegebench-{content.id}", type="results", description=content.name)
        for name, file in content.files.items():
            (Path(folder) / name).write_bytes(file)
            artifact.add_file(str(Path(folder) / name), name=name)
        run.log_artifact(artifact, aliases=["latest", f"rows-{digest([content.files['rows.jsonl'].decode()])[:8]}"])


class Live:
    """The run of a suite while its cells are computed: cells done, cells failed, seconds left.

    A cell is told after its row is on disk.

    Args:
        total: number of cells.
    """

    def __init__(self, record: Record, target: Target, total: int) -> None:
        self.total, self.done, self.failed, self.last = total, 0, 0, 0.0
        self.session = Session(
            target, record.id, name=record.title[:128], group=record.suite, job_type="suite",
            config={"suite": record.suite, "overrides": record.overrides, "cells": total},
        )  # fmt: skip
        self.session.do(_over_progress)

    def ended(self, status: str, left: float | None) -> None:
        """A cell has ended. At most one message a second goes to W&B, and the last."""
        self.done += 1
        self.failed += status in ENDED_BADLY
        now = time.monotonic()
        if now - self.last >= EVERY or self.done >= self.total:
            self.last = now
            numbers: dict[str, float] = {DONE: self.done, FAILED: self.failed}
            if left is not None:
                numbers[LEFT] = round(left, 1)
            self.session.do(lambda wandb, run: run.log(numbers))

    def write(self, content: Content) -> None:
        """Write the whole suite and end the run."""
        put(self.session, content)
        self.session.close(int(content.failed))

    def interrupted(self, code: int) -> None:
        """End the run as it is; the next one continues it."""
        self.session.close(code)
