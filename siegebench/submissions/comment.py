"""The text below a pull request, from the report of `siegebench submit check --json`. The report is not trusted.

The report comes from a job that runs contributed code, so that whoever wrote that code decides what it says. It is read
strictly, and everything in it is shown as inline code: GitHub makes no link, mention or markup of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from siegebench.cells import SCHEMA
from siegebench.errors import ConfigError, quoted
from siegebench.schema import Part
from siegebench.submissions.form import STATUSES, Agreement, Status, read

REPORT_BYTES = 2**20
Text = Annotated[str, Field(max_length=2000)]
Texts = Annotated[list[Text], Field(max_length=200)]


class Place(Part):
    """A `board.Position`."""

    board: Text
    title: Text
    entry: Text
    place: Text
    would: Text
    of: int
    metric: Text
    value: Text
    interval: Text
    flags: Texts
    reasons: Texts


class Run(Part):
    """A `rerun.Rerun`."""

    file: Text
    key: Text
    title: Text
    agreed: Agreement
    why: Text


class Checked(Part):
    """What the check of one folder found. Without `problem` it was accepted."""

    folder: Text
    problem: Text = ""
    title: Text = ""
    who: Text = ""
    licence: Text = ""
    method: Text = ""
    paper: Text = ""
    content: Text = ""
    rows: int = 0
    status: Status = "claimed"
    salt: Text = ""
    rerun: Annotated[list[Run], Field(max_length=2000, default_factory=list)]
    lines: Annotated[list[Place], Field(max_length=500, default_factory=list)]


class Report(Part):
    """The whole report."""

    report_schema: Annotated[int, Field(alias="schema", ge=SCHEMA, le=SCHEMA)]
    protocol: int
    ok: bool
    submissions: Annotated[list[Checked], Field(max_length=200)]
    error: dict[Literal["type", "message"], Text] | None = None


def comment(path: Path) -> str:
    """The report in a file as Markdown.

    Raises:
        ConfigError: when it is not such a report.
    """
    try:
        with path.open("rb") as file:
            content = file.read(REPORT_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{quoted(str(path))}: cannot be read: {error.strerror}") from None
    if len(content) > REPORT_BYTES:
        raise ConfigError(
            f"{quoted(str(path))}: larger than {REPORT_BYTES:,} bytes; expected a report of `submit check`"
        )
    try:
        report = read(Report, content)
    except ConfigError as error:
        raise ConfigError(
            f"{quoted(str(path))}: {error}; expected what `siegebench submit check --json` prints"
        ) from None
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Report) -> Iterator[str]:
    yield "### Submissions"
    yield ""
    if report.error is not None:
        yield f"**Refused**: {code(report.error.get('message', ''))}"
        yield ""
    elif not report.submissions:
        yield "This pull request changes no submission."
    for checked in report.submissions:
        yield from _one(checked)
    yield (
        "<sub>A job without permissions made this report, with the code of this pull request. It changes no status: "
        "that is what `siegebench submit check FOLDER --rerun N --record NAME` of somebody else does.</sub>"
    )


def _one(checked: Checked) -> Iterator[str]:
    if checked.problem:
        yield f"**Refused**: {code(checked.folder)}"
        yield ""
        yield code(checked.problem)
        yield ""
        return
    yield f"**{code(checked.title)}** by {code(checked.who)}, {code(checked.licence)}, rows: {checked.rows}"
    yield ""
    yield " ".join(code(text) for text in (checked.method, checked.paper) if text)
    yield ""
    told = {
        "claimed": "claimed: only the author has run it",
        "smoke_checked": "smoke-checked: others have run some of its cells",
        "reproduced": "reproduced: others have run all of its cells",
    }
    assert told.keys() == set(STATUSES)
    yield f"Status: {told[checked.status]}. Content {code(checked.content[:16])}."
    yield ""
    yield from _rerun(checked)
    yield from _table(checked)


def _rerun(checked: Checked) -> Iterator[str]:
    if not checked.rerun:
        yield "No cell was run again here."
        yield ""
        return
    differing = [run for run in checked.rerun if run.agreed == "differs"]
    equal = sum(run.agreed == "equal" for run in checked.rerun)
    within = len(checked.rerun) - equal - len(differing)
    salt = f"with the salt {code(checked.salt)}" if checked.salt else "without a salt"
    yield (
        f"Run again: {len(checked.rerun)} of {checked.rows} cells, drawn {salt}: {equal} equal, "
        f"{within} within the interval, {len(differing)} different."
    )
    yield ""
    for run in differing:
        yield f"- {code(run.title)}: {code(run.why)}"
    if differing:
        yield ""


def _table(checked: Checked) -> Iterator[str]:
    if not checked.lines:
        yield "Its rows are on no board."
        yield ""
        return
    yield "| board | entry | number | rank | once reproduced | flags |"
    yield "|---|---|---|---|---|---|"
    for line in checked.lines:
        number = f"{line.metric} {line.value}" + (f" [{line.interval}]" if line.interval else "")
        would = f"{line.would} of {line.of}" if line.would else "not ranked: " + "; ".join(line.reasons)
        cells = (line.title, line.entry, number, line.place or "not ranked", would, ", ".join(line.flags) or "none")
        yield "| " + " | ".join(map(code, cells)) + " |"
    yield ""


def code(text: str) -> str:
    """Text of strangers as inline code, in which nothing has a meaning; an en dash for none."""
    kept = "".join(c if c.isprintable() else "?" for c in text[:400]).replace("`", "'").replace("|", "¦").strip()
    return f"`{kept}`" if kept else "–"
