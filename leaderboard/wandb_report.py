"""A report of W&B about a suite: its boards as panels over the tables that its run has, flags, glossary.

Needs the extra `reports`. Panels use the names of `wandb_content` only.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Iterable, Sequence
from typing import Any

from siegebench.errors import MissingExtra, SiegeError
from siegebench.records import Record

from .board import SHORT, Board
from .wandb_charts import Chart
from .wandb_content import DONE, FLAGS, LEFT, ROWS, Content, Runs, chart_name, pictures_name, table_name, table_of
from .wandb_session import QUIET, environment, told

WIDE, HIGH, HALF = 24, 10, 12  # of panels, in units of W&B's grid
MOST_FLAGS = 30  # of a board, as text; the table has all


class ReportError(SiegeError):
    """W&B did not take a report."""


def check() -> None:
    """Raises MissingExtra when wandb-workspaces is not installed."""
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise MissingExtra("wandb-workspaces", "reports", "a W&B report")


def build(
    record: Record, content: Content, boards: Sequence[Board], runs: Runs = "per_suite", project: str = "siegebench",
    entity: str = "",
) -> Any:  # fmt: skip
    """The report as an object of `wandb_workspaces`. Contacts no server if no entity is given.

    Args:
        content: of the suite, see `wandb_content.of_suite`.
        runs: what the panels show: tables of the run of the suite, or with `per_line` the runs of its entries.

    Raises:
        MissingExtra: when wandb-workspaces is not installed.
    """
    check()
    wr: Any = importlib.import_module("wandb_workspaces.reports.v2")  # its names are made at run time
    where = {"entity": entity, "project": project} if entity else {}
    summary = {name: value for name, value in content.summary.items() if name.startswith("suite/")}
    told = ", ".join(f"{name.removeprefix('suite/').replace('_', ' ')} {value:g}" for name, value in summary.items())
    blocks: list[Any] = [
        wr.P(f"{told}. Numbers are fractions in [0, 1] where a column is a rate."), wr.TableOfContents(),
    ]  # fmt: skip
    for board in boards:
        blocks += _heading(wr, board)
        panels = _compared(wr, board) if runs == "per_line" else _panels(wr, board, content)
        chosen = (
            f"Config('board') = '{board.id}' and Config('suite') = '{record.suite}'"
            if runs == "per_line" else f"Metric('ID') = '{record.id}'"
        )  # fmt: skip
        runset = wr.Runset(name=record.title[:60], filters=chosen, **where)
        blocks += [wr.PanelGrid(runsets=[runset], panels=panels), *_findings(wr, board)]
    if runs == "per_suite":
        runset = wr.Runset(name=record.title[:60], filters=f"Metric('ID') = '{record.id}'", **where)
        blocks += _whole(wr, content, boards, runset)
    blocks += [wr.H1("Glossary"), wr.UnorderedList(items=_glossary(boards))]
    return wr.Report(
        project=project, entity=entity, title=f"siegebench: {record.title}"[:128], blocks=blocks, width="fluid",
        description=f"Ranked boards of the suite {record.title}, {len(record.cells)} cells.",
    )  # fmt: skip


def _heading(wr: Any, board: Board) -> list[Any]:
    facts = ", ".join(f"{name} {value}" for name, value in board.facts.items())
    return [wr.H1(board.title), wr.P(board.result), wr.P(board.about), wr.P(facts)]


def _panels(wr: Any, board: Board, content: Content) -> list[Any]:
    """The board as a table, its chart and its pictures, where the run has them."""
    panels: list[Any] = []
    if table_name(board) in content.tables:
        panels.append(wr.WeavePanelSummaryTable(table_name=table_name(board), layout=wr.Layout(0, 0, WIDE, HIGH)))
    if (chart := content.charts.get(chart_name(board.id))) is not None:
        panels.append(_chart(wr, chart_name(board.id), chart, wr.Layout(0, HIGH, WIDE, HIGH)))
    if pictures_name(board) in content.pictures:
        layout = wr.Layout(0, 2 * HIGH, WIDE, HIGH)
        panels.append(wr.MediaBrowser(title="Pictures", media_keys=[pictures_name(board)], layout=layout))
    return panels


def _chart(wr: Any, name: str, chart: Chart, layout: Any) -> Any:
    return wr.CustomChart(
        query={"id": {}, "name": {}, "summaryTable": {"tableKey": table_of(name)}}, chart_name=chart.preset,
        chart_fields=chart.fields, chart_strings={"title": chart.title}, layout=layout,
    )  # fmt: skip


def _compared(wr: Any, board: Board) -> list[Any]:
    """Panels over the runs of a board's entries: parallel coordinates of its columns, and its main number."""
    columns = [c.id for c in board.columns if c.main and c.unit != "text"]
    axes = [wr.ParallelCoordinatesPlotColumn(metric=wr.SummaryMetric(id)) for id in columns]
    main = wr.BarPlot(title=board.primary, metrics=[board.primary], layout=wr.Layout(0, HIGH, WIDE, HIGH))
    return [wr.ParallelCoordinatesPlot(columns=axes, layout=wr.Layout(0, 0, WIDE, HIGH)), main]


def _whole(wr: Any, content: Content, boards: Sequence[Board], runset: Any) -> list[Any]:
    """What belongs to no single board: curves over several boards, all flags, all rows, the progress."""
    own = {chart_name(board.id) for board in boards}
    swept = {name: chart for name, chart in content.charts.items() if name not in own}
    blocks: list[Any] = []
    if swept:
        drawn = [_chart(wr, n, c, wr.Layout(0, HIGH * i, WIDE, HIGH)) for i, (n, c) in enumerate(swept.items())]
        blocks += [wr.H1("Over the budget"), wr.PanelGrid(runsets=[runset], panels=drawn)]
    tables = [name for name in (FLAGS, ROWS) if name in content.tables]
    panels = [
        wr.WeavePanelSummaryTable(table_name=name, layout=wr.Layout(0, HIGH * i, WIDE, HIGH))
        for i, name in enumerate(tables)
    ]
    time = wr.LinePlot(title="Seconds left", x=DONE, y=[LEFT], layout=wr.Layout(0, HIGH * len(tables), WIDE, HIGH))
    return [*blocks, wr.H1("Flags and rows"), wr.PanelGrid(runsets=[runset], panels=[*panels, time])]


def _findings(wr: Any, board: Board) -> list[Any]:
    """Flags with their evidence, why entries are not ranked, and notes, as text."""
    flags = [(f, line) for line in board.lines for f in line.flags if f.severity != "info"]
    flags.sort(key=lambda pair: pair[0].order())
    items = [
        f"{f.severity}: {f.id}: {line.title}: {f.evidence}" + (f" (row {f.key[:SHORT]})" if f.key else "")
        for f, line in flags[:MOST_FLAGS]
    ]
    items += [f"{len(flags) - MOST_FLAGS} more flags are in the table of all flags."] if len(flags) > MOST_FLAGS else []
    why = [
        f"{line.status}: {line.title}: {'; '.join((*line.reasons, *filter(None, [line.verdict])))}"
        for line in board.unranked
    ]
    every = [*items, *why, *board.notes]
    return [wr.H3("Flags and notes"), wr.UnorderedList(items=every)] if every else []


def _glossary(boards: Iterable[Board]) -> list[str]:
    """Every column of the boards that has an explanation, and the words of all boards."""
    words = {
        "rank": "Entries that a paired test cannot tell apart share a rank, as in 1-3.",
        "low, high": "Ends of the 95 % interval.",
        "control": "An entry that is known to be fake, planted to test the checks. It is listed and never ranked.",
        "fail, flag, info": "Severity of a flag: the entry is not ranked; ranked with a warning; a remark.",
    }
    for board in boards:
        words |= {f"{c.title} ({c.id})": c.help for c in board.columns if c.help and not c.group and c.id not in words}
    return [f"{word}: {meaning}" for word, meaning in words.items()]


def as_json(report: Any) -> str:
    """What W&B would be sent."""
    text = report._to_model().spec.model_dump_json(by_alias=True, exclude_none=True)
    whole = {"title": report.title, "description": report.description, "spec": json.loads(text)}
    return json.dumps(whole, indent=1, ensure_ascii=False)


def save(report: Any, known: str = "") -> tuple[str, str]:
    """Send a report; returns its id and address.

    Args:
        known: id of the report that it replaces.

    Raises:
        ReportError: when W&B did not take it.
    """
    report.id = known
    try:
        with environment(QUIET):
            report.save()
    except Exception as error:  # the package raises errors of its transport, and plain ones
        again = "; if the report was deleted, --new makes another" if known else ""
        raise ReportError(f"W&B did not take the report ({told(error)}){again}") from None
    return report.id, report.url
