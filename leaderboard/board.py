"""The data of a ranking: boards, their lines, and numbers with the keys of the rows they were computed from.

Terminal tables, JSON, CSV, Markdown and the page all print the same boards.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, Literal, TypeVar

from siegebench import registry
from siegebench.cells import Result, canonical, label, rate
from siegebench.titles import changed

from .figures import Figure
from .stats import rank_groups
from .words import Unit as Unit
from .words import display as display
from .words import interval as interval
from .words import shown as shown
from .words import slug as slug

T = TypeVar("T")
SEVERITIES = ("fail", "flag", "info")
TOLD = ("not_repeatable", "claimed")  # flags whose evidence says why a line is not ranked
OF_CLEAN = ("chance_accuracy", "input_convention")  # flags of the answers to clean images
OF_VICTIM = (*OF_CLEAN, "batch_dependent", "stateful", "global_generator", "randomness_undeclared")  # of any attack
SHORT = 16  # digits of a key in display and file names


@dataclass(frozen=True)
class Number:
    """A value and its source.

    Attributes:
        value: None if it could not be measured, or is not finite.
        low, high: 95 % interval, if there is one.
        n: number of items it was measured on.
        keys: keys of the rows it was computed from.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    keys: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("value", "low", "high"):
            given = getattr(self, name)
            if given is not None and not math.isfinite(given):
                object.__setattr__(self, name, None)


@dataclass(frozen=True)
class Column:
    """One column of a board.

    Attributes:
        id: name, the same in every export.
        unit: how values are formatted.
        better: whether high or low values are better; empty if neither.
        main: also shown in the terminal; other columns appear only on the page and in the exports.
        group: columns of one group are comparable with each other (one per attack).
        heading: heading above the columns of the group.
        over: what the titles of some columns of the group begin with; the page shows it once, above them.
    """

    id: str
    title: str
    unit: Unit = "rate"
    help: str = ""
    better: Literal["high", "low", ""] = "high"
    main: bool = True
    group: str = ""
    heading: str = ""
    over: str = ""


@dataclass(frozen=True, order=True)
class Mark:
    """A flag on a line: from a row (`key`), or from comparing rows (`key` empty)."""

    severity: str
    id: str
    evidence: str
    key: str = ""

    def order(self) -> tuple[Any, ...]:
        return (SEVERITIES.index(self.severity) if self.severity in SEVERITIES else 0, self.id, self.key, self.evidence)


@dataclass(frozen=True)
class Line:
    """One entry of a board.

    Attributes:
        names: `{"model": ..., "defense": ...}`, the ranked entry.
        rank: best and worst possible rank; None if it is not ranked.
        reasons: reasons why it is not ranked.
        numbers, texts: by column.
        control: whether it is a control planted by the suite.
        judged: a control that the checks must detect; `uncaught` says why they did not, and is empty if they did.
        keys: keys of all rows of the line.
        kept: packed 0/1 vector of the images that it keeps, of `kept_of` images; empty where entries are not compared
            image by image.
    """

    names: dict[str, str]
    numbers: dict[str, Number] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    rank: tuple[int, int] | None = None
    reasons: tuple[str, ...] = ()
    flags: tuple[Mark, ...] = ()
    control: bool = False
    judged: bool = False
    uncaught: str = ""
    keys: tuple[str, ...] = ()
    kept: str = ""
    kept_of: int = 0

    @property
    def place(self) -> str:
        """`2`, or `1-3` if the difference to neighbours is not significant; empty when not ranked."""
        best, worst = self.rank or ("", "")
        return f"{best}" if best == worst else f"{best}-{worst}"

    @property
    def verdict(self) -> str:
        """What the checks said of a control; empty for other lines."""
        if not self.control:
            return ""
        if not self.judged:
            return "not judged: no check has to detect it on this board"
        return f"NOT CAUGHT: {self.uncaught}" if self.uncaught else "caught"

    @property
    def title(self) -> str:
        return " / ".join(self.names.values())

    @property
    def entry(self) -> str:
        """The last of its names: the ranked entry without its model."""
        return list(self.names.values())[-1]

    @property
    def key(self) -> tuple[str, ...]:
        """Its names: unique on a board, which a joined title need not be."""
        return tuple(self.names.values())

    @property
    def status(self) -> str:
        return "control" if self.control else "ranked" if self.rank else "not ranked"

    def number(self, column: str) -> Number:
        return self.numbers.get(column, Number(None))

    def value(self, column: str) -> float | None:
        return self.number(column).value


@dataclass(frozen=True)
class Board:
    """Lines that can be compared: one track, one slice of data, one threat.

    Attributes:
        id: short name that is safe in links and file names.
        about: short text on how the entries are ranked.
        facts: what all lines share, for display.
        primary: the column that decides the ranking.
        row_metric: the metric of a single row that contributes to it.
        figure: the figure to draw, and `also` the further ones.
        notes: remarks below the table.
        result: the outcome in one sentence, see `sentences`.
        noun: what one of its inputs is called, see `nouns`.
    """

    id: str
    track: str
    title: str
    about: str
    facts: dict[str, str]
    columns: tuple[Column, ...]
    primary: str
    row_metric: str
    figure: Figure
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()
    result: str = ""
    also: tuple[Figure, ...] = ()
    noun: str = "image"

    @property
    def nouns(self) -> str:
        """What its inputs are called, and the name of the fact that says how many there are."""
        return f"{self.noun}s"

    @property
    def entry(self) -> str:
        """Heading of the entries, such as `Defense`."""
        return next((list(line.names)[-1].capitalize() for line in self.lines), "Entry")

    @property
    def unit(self) -> Unit:
        """Unit of the primary column."""
        return next((column.unit for column in self.columns if column.id == self.primary), "score")

    @property
    def ranked(self) -> tuple[Line, ...]:
        return tuple(line for line in self.lines if line.rank is not None)

    @property
    def unranked(self) -> tuple[Line, ...]:
        return tuple(line for line in self.lines if line.rank is None)


# ------------------------------------------------------------------------------------------------- reading the rows


def unique(results: Iterable[Result]) -> list[Result]:
    """One row per key, independent of order and repetition. A successful row replaces a failed one."""
    rows = sorted(results, key=lambda r: (r.cell.key, r.status != "ok", canonical([r.metrics, r.flags, r.samples])))
    return list({r.cell.key: r for r in reversed(rows)}.values())[::-1]


def group(items: Iterable[T], by: Callable[[T], Any]) -> dict[Any, list[T]]:
    """Group items by a key, in sorted order of the keys."""
    found: dict[Any, list[T]] = defaultdict(list)
    for item in items:
        found[by(item)].append(item)
    return {key: found[key] for key in sorted(found)}


def metric(row: Result, name: str) -> float | None:
    """A finite number, or None."""
    value = row.value(name)
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None


def stored(row: Result, name: str) -> Number:
    """A metric of one row as it was stored."""
    found = row.metrics.get(name, {})
    n = None if found.get("n") is None else int(found["n"])
    return Number(metric(row, name), found.get("low"), found.get("high"), n, (row.cell.key,))


def share(k: float, n: int, keys: tuple[str, ...] = ()) -> Number:
    """k of n with its Wilson interval."""
    if n < 1:
        return Number(None, keys=keys)
    made = rate(k, n)
    return Number(made["value"], made["low"], made["high"], n, keys)


def slice_of(row: Result) -> tuple[str, ...]:
    """The evaluated data of a row. Rows with the same slice are comparable. A limit of the training images is part."""
    limit = ["train"] if "train" in row.cell.data else []
    return tuple(str(row.cell.data.get(k, "")) for k in ("name", "split", "count", "digest", *limit))


def data_kind(row: Result) -> str:
    """The kind of its data."""
    return str(row.cell.data.get("kind", "image"))


def slice_facts(row: Result) -> dict[str, str]:
    """The slice for display."""
    data = row.cell.data
    facts = {"data": str(data["name"])}
    if varied := changed("dataset", data.get("source") or {}):
        facts["data parameters"] = varied
    for key, title in (("split", "split"), ("count", "images"), ("train", "training images")):
        if data.get(key):
            facts[title] = str(data[key])
    if data.get("digest"):
        facts["data hash"] = str(data["digest"])[:12]
    return facts


def trained_alike(model: Mapping[str, Any]) -> dict[str, Any]:
    """A model's description without its training, the same for all members of a population."""
    own = ("published", "sha256", "ema", "part") if "published" in model else ("train_seed",)
    return {k: v for k, v in model.items() if k not in own}


def is_control(kind: str, description: Mapping[str, Any] | None) -> bool:
    """Whether an entry, or its inner attack, is a planted control (`control: true` on its card)."""
    if description is None:
        return False
    found = registry.cards().get((kind, str(description["name"])))
    inner = description.get("attack")
    return (found is not None and found.card.control) or is_control(
        "attack", inner if isinstance(inner, dict) else None
    )


def why(row: Result) -> str:
    """The reason why a row has no result, in one line."""
    error = row.error or {}
    text = str(error.get("message") or error.get("type") or row.status)
    return text.strip().splitlines()[0][:160] if text.strip() else row.status


def problems(rows: Iterable[Result]) -> list[str]:
    """Reasons in the rows not to rank a line: errors, entries that do not apply, failed checks, numbers that change."""
    rows, out = list(rows), list[str]()
    idle = [r for r in rows if r.status == "not_applicable"]
    if idle and len(idle) == len(rows):
        out.append(f"not applicable: {why(idle[0])}")
    failed_rows = [r for r in rows if r.status == "error"]
    if failed_rows:
        more = f" and {len(failed_rows) - 1} more" if len(failed_rows) > 1 else ""
        out.append(f"failed: {what(failed_rows[0])}{more} ({why(failed_rows[0])})")
    told = {f["id"]: f"{what(r)} ({f['evidence'][:160]})" for r in rows[::-1] for f in r.flags if f["id"] in TOLD}
    out += [f"{name.replace('_', ' ')}: {told[name]}" for name in TOLD if name in told]
    failed = sorted({f["id"] for r in rows for f in r.flags if f["severity"] == "fail" and f["id"] not in TOLD})
    return out + [f"check failed: {name}" for name in failed]


def what(row: Result) -> str:
    """What a row measures: the attack, measure, backdoor, corruption or other inputs."""
    cell = row.cell
    if "truth" in row.metrics:  # one model of a population
        return f"{label(cell.backdoor) if cell.backdoor else 'clean'} model, seed {cell.seed}"
    if cell.inputs is not None:
        return cell.labels["inputs"]
    done = cell.theft or cell.attack or cell.measure or cell.backdoor or cell.doing or {"name": "clean"}
    return label(done)


def marks(rows: Iterable[Result]) -> list[Mark]:
    """The flags of the rows. A flag of the victim, which all its rows have, is named once."""
    found: dict[tuple[str, ...], Mark] = {}
    for row in rows:
        for f in row.flags:
            mark = Mark(f["severity"], f["id"], f["evidence"], row.cell.key)
            own = () if f["id"] in OF_VICTIM else (row.cell.key,)
            found.setdefault((mark.severity, mark.id, mark.evidence, *own), mark)
    return list(found.values())


def in_order(flags: Iterable[Mark]) -> tuple[Mark, ...]:
    """Flags sorted by severity, worst first."""
    return tuple(sorted(set(flags), key=Mark.order))


def place(
    lines: Iterable[Line],
    key: Callable[[Line], Any],
    compare: Callable[[Line, Line], tuple[float, float]],
    tie: Callable[[Line], Any] | None = None,
) -> tuple[Line, ...]:
    """Sort the lines and assign rank groups. Lines with a reason not to rank come last, controls at the end.

    Args:
        key: sort key of a line, smallest first.
        compare: two lines to (how much better the first is, p-value).
        tie: sort key of neighbours with the same ranks; `key` decides if it is left out.
    """
    everything = sorted(lines, key=lambda line: (key(line), tuple(line.names.values())))
    ranked = [line for line in everything if not line.reasons]
    groups = rank_groups(len(ranked), lambda i, j: compare(ranked[i], ranked[j]))
    placed = [replace(line, rank=group) for line, group in zip(ranked, groups, strict=True)]
    if tie is not None:
        placed = [line for _, tied in groupby(placed, key=lambda line: line.rank) for line in sorted(tied, key=tie)]
    return (*placed, *sorted((line for line in everything if line.reasons), key=lambda line: line.control))


def low_first(value: float | None) -> tuple[bool, float]:
    """Sort key of a number: smallest first, missing ones last."""
    return value is None, value or 0.0


def high_first(value: float | None) -> tuple[bool, float]:
    """Sort key of a number: largest first, missing ones last."""
    return value is None, -(value or 0.0)
