"""Two entries image by image: how many images both keep, and how many only one of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from siegebench.cells import unpack

from .board import Line
from .stats import mcnemar

MOST = 100  # neighbours of a table; scripts compare any two


def kept(line: Line) -> Any:
    """Which images an entry keeps, bool [N]."""
    return unpack(line.kept, line.kept_of)


def neighbours(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Each ranked entry beside the next one."""
    comparable = [line for line in lines if line.kept and line.rank is not None]
    usual = comparable[0].kept_of if comparable else 0
    comparable = [line for line in comparable if line.kept_of == usual]
    return [_pair(a, b) for a, b in pairwise(comparable[: MOST + 1])]


def _pair(a: Line, b: Line) -> dict[str, Any]:
    one, two = kept(a), kept(b)
    p = mcnemar(one, two)
    return {
        "first": a.title,
        "second": b.title,
        "both": int((one & two).sum()),
        "only_first": int((one & ~two).sum()),
        "only_second": int((~one & two).sum()),
        "neither": int((~one & ~two).sum()),
        "p": f"{p:.3f}" if p >= 0.001 else f"{p:.1e}",
    }
