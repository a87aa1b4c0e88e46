"""Boards that differ in one number only. Together they give a curve for each entry."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sweep:
    """The place of a board among those that differ from it in one number only, such as the budget eps.

    Attributes:
        of: id that these boards share.
        about: what they share, for display.
        at: the number of this board.
        title: what the number is.
        start: the column whose value stands at 0.
    """

    of: str
    about: str
    at: float
    title: str
    start: str
