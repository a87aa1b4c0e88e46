"""Tables of the study track: the figures of each study, which are never ranked."""

from __future__ import annotations

from collections.abc import Sequence

from siegebench.cells import Result, canonical

from .board import Board, Column, Line, Number, display, group, in_order, marks, problems, slice_facts, slice_of, slug
from .figures import Dots
from .glossary import meaning_of_figure
from .stats import average

ABOUT = (
    "A study brings its own victim, which answers with a box or a sentence and not with a class. Its figures are shown "
    "beside their baselines and are not ranked; they enter no other board."
)
REASON = "a study is shown, not ranked"
BASELINE = "baseline"  # the word that figures of baselines have, see `siegebench.types.Study`
SHOWN = 6  # columns in the terminal; the page and the exports have all


def boards(rows: Sequence[Result]) -> list[Board]:
    """One table for each slice of the data and study; a line for each set of parameters, means over seeds."""
    mine = [r for r in rows if r.cell.track == "study" and r.cell.study is not None]
    return [_board(members, name) for (_, name), members in group(mine, _table).items()]


def _table(row: Result) -> tuple[tuple[str, ...], str]:
    return slice_of(row), str((row.cell.study or {})["name"])


def _board(members: list[Result], name: str) -> Board:
    names = display([r.cell.study for r in members])
    lines = tuple(_line(names[key], rows) for key, rows in group(members, lambda r: canonical(r.cell.study)).items())
    figures = list(dict.fromkeys(metric for row in members for metric in row.metrics))
    columns = tuple(
        Column(figure, figure.replace("_", " "), "score", meaning_of_figure("study", name, figure), "", main=k < SHOWN)
        for k, figure in enumerate(figures)
    )
    data = str(members[0].cell.data["name"])
    return Board(
        id=slug("study", data, name, key=[slice_of(members[0]), name]),
        track="study",
        title=f"Study: {name} on {data}",
        about=ABOUT,
        facts=slice_facts(members[0]),
        columns=columns,
        primary=figures[0] if figures else "",
        row_metric=figures[0] if figures else "",
        figure=Dots("study", mean=figures[0] if figures else "", title=columns[0].title if columns else name),
        lines=lines,
        result=_told(figures),
    )


def _told(figures: list[str]) -> str:
    """What the table has, as no figure of a study is the first of others."""
    if not figures:
        return "The study did not finish; the table says why."
    baselines = sum(BASELINE in figure for figure in figures)
    return f"{len(figures)} figures, {baselines} of them of baselines: shown, not ranked."


def _line(name: str, rows: list[Result]) -> Line:
    good = [r for r in rows if r.status == "ok"]
    keys = tuple(r.cell.key for r in rows)
    numbers = {}
    for figure in dict.fromkeys(m for r in good for m in r.metrics):
        values = [r.metrics[figure] for r in good if figure in r.metrics]
        mean = average([float(v["value"]) for v in values])
        one = values[0] if len(values) == 1 else {}
        n = one.get("n")
        numbers[figure] = Number(mean, one.get("low"), one.get("high"), None if n is None else int(n), keys)
    return Line(
        names={"study": name},
        numbers=numbers,
        reasons=(REASON, *problems(rows)),
        flags=in_order(marks(rows)),
        keys=keys,
    )
