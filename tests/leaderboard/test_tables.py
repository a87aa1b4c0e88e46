"""Terminal tables fit, and say aloud what is wrong."""

from __future__ import annotations

import io

from rich.console import Console
from siegebench.leaderboard import rank, tables

from tests import rows as make

from .boards import scaled


def test_terminal_tables_fit_in_a_hundred_columns() -> None:
    with make.controls(*make.PLANTED):
        boards = rank.boards(make.everything())
    out = Console(width=100, file=io.StringIO(), force_terminal=False)
    tables.show(boards, out)
    text = out.file.getvalue()  # type: ignore[attr-defined]
    assert max(len(row) for row in text.splitlines()) <= 100
    assert "…" not in text
    for word in (
        "49.0 [42–56]",
        "1-3",
        "adversarial_training",
        "noop_attack",
        "control: resnet18 / logit_scaling: caught",
    ):
        assert word in text
    tables.show([], out)
    assert "No rows yet" in out.file.getvalue()  # type: ignore[attr-defined]


def test_an_uncaught_control_is_loud_in_the_terminal() -> None:
    with make.controls(("defense", "logit_scaling")):
        boards = rank.boards(scaled(160, 4, []))
    out = Console(width=100, file=io.StringIO(), force_terminal=False)
    tables.show(boards, out)
    assert "NOT CAUGHT: no check fired on it" in out.file.getvalue()  # type: ignore[attr-defined]
