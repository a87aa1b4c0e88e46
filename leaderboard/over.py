"""Robust accuracy over the number of queries, and over eps where boards differ in nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from siegebench.cells import ball_text
from siegebench.metrics import QUERY_MARKS

from . import columns
from .board import Board, Number, group
from .figures import Curves

EPS = "eps"  # group of the columns with the accuracy at other eps


def marks(budget: int | None) -> list[str]:
    """The metrics with the accuracy below the budget. At the budget, the ranked number says it."""
    return [f"robust_acc@{k}" for k in QUERY_MARKS if budget is None or k < budget]


def queries(budget: int | None) -> Curves:
    """What is left under the strongest single attack below the budget, and the ranked number at it."""
    below = [(name, float(name.partition("@")[2])) for name in marks(budget)]
    return Curves(
        (*below, *([("robust_acc", float(budget))] if budget else ())), start=("clean_acc", "clean"),
        title="queries per image",
    )  # fmt: skip


def eps(found: Sequence[tuple[Any, dict[str, Any], Board]]) -> list[Board]:
    """The boards, those that differ only in eps with a curve over it.

    Args:
        found: (what boards share that differ only in eps, threat, board).
    """
    out = {board.id: board for _, _, board in found}
    for members in group(found, lambda item: item[0]).values():
        if len(members) < 2:
            continue
        members = sorted(members, key=lambda item: item[1]["eps"])
        names = [ball_text({"norm": t["norm"], "eps": t["eps"]}).partition(" ")[2] for _, t, _ in members]
        scale, unit = _scale(members[0][1]["norm"], names)
        points = tuple((f"{EPS}:{n}", scale * float(t["eps"])) for n, (_, t, _) in zip(names, members, strict=True))
        title = f"{members[0][1]['norm']} eps{unit}"
        figure = Curves(points, start=("clean_acc", "0"), title=title, log=False, origin=0.0)
        numbers: dict[tuple[str, ...], dict[str, Number]] = {}
        for (column, _), (_, _, board) in zip(points, members, strict=True):
            for line in board.lines:
                if line.value(board.primary) is not None:
                    numbers.setdefault(line.key, {})[column] = line.number(board.primary)
        for _, _, board in members:
            text = "The ranked number of the board with this eps."
            better = next(c.better for c in board.columns if c.id == board.primary) if board.ranked else ""
            each = columns.under(EPS, names, "rate", text, better, heading="At other eps")
            lines = tuple(replace(x, numbers={**x.numbers, **numbers.get(x.key, {})}) for x in board.lines)
            out[board.id] = replace(
                board, lines=lines, columns=columns.filled([*board.columns, *each], lines), also=(figure,)
            )
    return list(out.values())


def _scale(norm: str, names: Sequence[str]) -> tuple[float, str]:
    """(by what eps are multiplied on the axis, the unit there), as the names of the boards have them."""
    if norm == "l0":
        return 100.0, ", %"
    return (255.0, " / 255") if all(name.endswith("/255") for name in names) else (1.0, "")
