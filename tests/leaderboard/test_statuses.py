"""Rows of a real run that are missing, failed or not applicable, in every mixture: the boards are ranked and shown."""

from __future__ import annotations

import io
import itertools
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from siegebench.leaderboard import rank, tables

from siegebench.cells import SLOTS, Result
from siegebench.reporting import FORMATS, report
from siegebench.store import Store

FATES: dict[str, Callable[[Result], Result | None]] = {
    "kept": lambda row: row,
    "removed": lambda row: None,
    "not_applicable": lambda row: Result(
        cell=row.cell, status="not_applicable", error={"message": "needs three classes"}
    ),
    "error": lambda row: Result(cell=row.cell, status="error", error={"type": "RuntimeError", "message": "no memory"}),
    "empty": lambda row: Result(cell=row.cell),  # finished, without any number
}


@pytest.fixture(scope="module")
def real(real_store: Path) -> dict[str, list[Result]]:
    """The rows of each track. Boards of different tracks compare nothing but attacks, so a track is mixed alone."""
    by_track: dict[str, list[Result]] = {}
    for row in Store(real_store).rows():
        by_track.setdefault(row.cell.track, []).append(row)
    return by_track


def kind(row: Result) -> tuple[Any, ...]:
    """Rows that differ in what was run, not in the budget or the seed."""
    return tuple((getattr(row.cell, slot) or {}).get("name") for slot in SLOTS)


def shown(rows: Iterable[Result], formats: Iterable[str] = FORMATS) -> None:
    rows = list(rows)
    boards = rank.boards(rows)
    told = {key for board in boards for line in board.lines for key in line.keys}  # thefts are on two boards
    assert told == {row.cell.key for row in rows}, "a row is on no board"
    rank.uncaught_controls(rows)
    tables.show(boards, tables.Console(file=io.StringIO(), width=100))
    for format_ in formats:
        report(rows, format_)


def mixtures(kinds: list[Any], rng: random.Random | None) -> Iterator[dict[Any, str]]:
    """A fate for each kind of row: one kind alone and one kind changed, in every way; or 20 random mixtures."""
    if rng is not None:
        yield from ({k: rng.choice([*FATES]) for k in kinds} for _ in range(20))
        return
    for one, fate in itertools.product(kinds, FATES):
        yield {k: fate if k == one else "removed" for k in kinds}
        yield {k: fate if k == one else "kept" for k in kinds}
    for fate in FATES:
        yield dict.fromkeys(kinds, fate)


def mixed(rows: list[Result], fates: dict[Any, str]) -> list[Result]:
    return [found for row in rows if (found := FATES[fates[kind(row)]](row)) is not None]


@pytest.mark.parametrize(
    "track", ["white_box", "query", "backdoor", "input_detection", "model_detection", "corruption"]
)
def test_boards_of_any_statuses_are_ranked_and_shown(real: dict[str, list[Result]], track: str) -> None:
    rows = real[track]
    kinds = sorted({kind(row) for row in rows}, key=str)
    seen = set()
    for i, fates in enumerate(itertools.chain(mixtures(kinds, None), mixtures(kinds, random.Random(track)))):
        found = mixed(rows, fates)
        content = frozenset((row.cell.key, row.status, bool(row.metrics)) for row in found)
        if content in seen:
            continue
        seen.add(content)
        try:
            shown(found, FORMATS if i % 20 == 0 else ("html",) if len(found) < len(rows) or i % 4 == 0 else ())
        except Exception as error:
            error.add_note(f"{track}: {fates}")
            raise


@pytest.mark.slow
def test_every_subset_of_the_rows_of_small_tracks(real: dict[str, list[Result]]) -> None:
    for track, rows in real.items():
        kinds = sorted({kind(row) for row in rows}, key=str)
        for chosen in itertools.product(FATES, repeat=min(3, len(kinds))):
            fates = {**dict.fromkeys(kinds, "kept"), **dict(zip(kinds, chosen, strict=False))}
            try:
                shown(mixed(rows, fates))
            except Exception as error:
                error.add_note(f"{track}: {fates}")
                raise
