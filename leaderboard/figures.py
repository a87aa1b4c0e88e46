"""What a board may ask to be drawn. `plots` computes where everything stands, the template draws it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scatter:
    """A figure with one point for each line: one column against another.

    Attributes:
        x, y: columns; `y` is drawn with its interval.
    """

    x: str
    y: str


@dataclass(frozen=True)
class Curves:
    """A figure with one curve for each line: a rate against a number that is part of the columns' names.

    Attributes:
        columns: such as `robust_acc@100`, and the number that each stands for.
        start: the column where every curve begins, and what to call it.
        title: of the horizontal axis.
        log: whether that axis is logarithmic.
    """

    columns: tuple[tuple[str, int], ...]
    start: tuple[str, str]
    title: str
    log: bool = True


@dataclass(frozen=True)
class Bars:
    """A figure with two bars for each line, one that should be long and one that should be short.

    Attributes:
        good, bad: columns, and what they show.
    """

    good: tuple[str, str]
    bad: tuple[str, str]


@dataclass(frozen=True)
class Dots:
    """A figure with one row for each line: a dot for each column of a group, and their mean.

    Attributes:
        group: of the columns.
        mean: the column with the mean.
        title: of the axis.
        chance: what guessing gets, where it means something.
    """

    group: str
    mean: str
    title: str
    chance: float | None = None


Figure = Scatter | Curves | Bars | Dots
