"""The kinds of figures of a board. `plots` computes the coordinates and the template draws them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scatter:
    """One point per line: one column against another.

    Attributes:
        x, y: names of the columns; `y` is drawn with its interval.
    """

    x: str
    y: str


@dataclass(frozen=True)
class Curves:
    """One curve per line: a rate against a number in the columns' names.

    Attributes:
        columns: names such as `robust_acc@100`, each with its number on the axis.
        start: the column of the first point of every curve, and its label.
        origin: where that point lies on the axis; None: before the others.
        title: title of the horizontal axis.
        log: whether that axis is logarithmic.
    """

    columns: tuple[tuple[str, float], ...]
    start: tuple[str, str]
    title: str
    log: bool = True
    origin: float | None = None


@dataclass(frozen=True)
class Bars:
    """Two bars per line: one where longer is better and one where shorter is better.

    Attributes:
        good, bad: names and labels of the columns.
    """

    good: tuple[str, str]
    bad: tuple[str, str]


@dataclass(frozen=True)
class Dots:
    """One row per line: a dot for each column of a group, and their mean.

    Attributes:
        group: group of the columns.
        mean: name of the column with the mean.
        title: title of the axis.
        chance: value of random guessing, if it is meaningful.
    """

    group: str
    mean: str
    title: str
    chance: float | None = None


@dataclass(frozen=True)
class Polar:
    """Two closed curves per line: a score in [0, 1] over all directions, and the one that it is compared with.

    Attributes:
        columns: names such as `vehicle_conf_azimuth@45`, each with the middle of its directions in degrees.
        before: what stands before a column's name for the score that it is compared with.
        title: what the score is, and of what.
        other: what it is compared with.
        sides: titles of 0, 90, 180 and 270 degrees, from the top to the left.
    """

    columns: tuple[tuple[str, float], ...]
    before: str
    title: str
    other: str
    sides: tuple[str, str, str, str]


Figure = Scatter | Curves | Bars | Dots | Polar
