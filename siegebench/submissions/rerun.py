"""Computes some cells of a submission again, drawn by whoever checks it. Runs the entries that are registered here."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from siegebench.cells import PROTOCOL, SCHEMA, Result, canonical, digest
from siegebench.errors import ConfigError
from siegebench.files import write_atomic
from siegebench.submissions.again import compared, compute, planned
from siegebench.submissions.form import REVIEW, Agreement, Review, Status, read
from siegebench.submissions.validate import Submission, suite_file

if TYPE_CHECKING:
    from siegebench.config import Suite
    from siegebench.executors import Report
    from siegebench.plan import Plan


@dataclass(frozen=True)
class Rerun:
    """A cell that was computed again.

    Attributes:
        file: of the row, such as `rows/pgd-0123456789abcdef.json`.
        agreed: `equal` if every outcome is the same, `within` if all rates lie in the claimed intervals.
        why: what contradicts the row, if it differs.
    """

    file: str
    key: str
    title: str
    agreed: Agreement
    why: str = ""


def drawn(submission: Submission, count: int, salt: str = "") -> list[str]:
    """The files of `count` rows, drawn by the hash of the whole submission and a salt of the checker.

    Every change of a file changes the draw, and the salt is not known to the author.
    """
    seed = [submission.form.content, salt]
    order = sorted(submission.rows, key=lambda file: digest([*seed, submission.rows[file].cell.key]))
    return order[:count]


def rerun(
    submission: Submission,
    count: int,
    *,
    salt: str = "",
    store: Path | None = None,
    threads: int | None = None,
    device: str = "auto",
    report: Report | None = None,
) -> list[Rerun]:
    """Plan the suites of a submission, and compute some of its cells again.

    Args:
        count: number of cells; at most all of them.
        store: where the cells are computed; an empty folder that is removed afterwards by default.

    Raises:
        ConfigError, DataError, ModelError: when a row is of no cell of its suite here, before anything is computed.
    """
    from siegebench.settings import Settings

    plans: dict[str, tuple[Suite, Plan]] = {}
    for file, row in submission.rows.items():
        origin = row.given["suite"]
        made = canonical(origin)
        if made not in plans:
            plans[made] = planned(origin, suite_file(submission, str(origin["name"])))
        known = {cell.key for cell in plans[made][1].cells}
        if row.cell.key not in known:
            raise ConfigError(
                f"{submission.folder / file}: key: found {row.cell.key[:16]}, none of the {len(known)} cells of the "
                f"suite {origin['name']} here: another budget, parameter, data set or weights; run the suite again"
            )
    wanted = drawn(submission, count, salt)
    found: dict[str, Result] = {}
    with tempfile.TemporaryDirectory() as own_store:
        settings = Settings(root=str(store or own_store), threads=threads, device=device)
        for made, (suite, plan) in plans.items():
            keys = [row.cell.key for f in wanted if canonical((row := submission.rows[f]).given["suite"]) == made]
            found |= compute(suite, plan, keys, settings, report=report, again=store is not None)
    return [_compared(submission, file, found[submission.rows[file].cell.key]) for file in wanted]


def _compared(submission: Submission, file: str, again: Result) -> Rerun:
    row = submission.rows[file]
    agreed, why = compared(row, again)
    return Rerun(file, row.cell.key, row.cell.title, agreed, why)


def status_after(submission: Submission, cells: Sequence[Rerun]) -> Status:
    """The status that these cells give a submission: all of them have to agree."""
    if not cells or any(cell.agreed == "differs" for cell in cells):
        return "claimed"
    return "reproduced" if {c.key for c in cells} == {r.cell.key for r in submission.rows.values()} else "smoke_checked"


def record(submission: Submission, cells: Sequence[Rerun], *, by: str, salt: str) -> Path:
    """Write the review of a submission whose cells agreed.

    Raises:
        ConfigError: when no cell was run again or one of them differs, or `by` is the author.
    """
    from siegebench.environment import commit
    from siegebench.evaluation import now

    status = status_after(submission, cells)
    if status == "claimed":
        raise ConfigError("--record: nothing to record; cells have to be run again, with --rerun N, and to agree")
    if by.strip().casefold() == submission.form.who.strip().casefold():
        raise ConfigError(f"--record {by}: is the author of the submission; somebody else has to run it")
    review = {
        "schema": SCHEMA,
        "protocol": PROTOCOL,
        "content": submission.form.content,
        "status": status,
        "by": by,
        "when": now(),
        "salt": salt,
        "commit": commit() or "",
        "cells": [{"key": cell.key, "agreed": cell.agreed} for cell in cells],
    }
    text = (json.dumps(review, indent=1, ensure_ascii=False) + "\n").encode()
    try:
        read(Review, text)
    except ConfigError as error:
        raise ConfigError(f"--record: {error}") from None
    path = submission.folder / REVIEW
    write_atomic(path, text)
    return path
