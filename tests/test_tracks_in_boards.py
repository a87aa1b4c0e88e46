"""What the tracks write is what the leaderboard reads: rows of a real run of every track, ranked and rendered."""

from __future__ import annotations

from pathlib import Path

import pytest
from siegebench.leaderboard import columns, export, page, rank

from siegebench.cells import Result
from siegebench.metrics import COUNTS, METRICS, SAMPLES, find
from siegebench.store import Store
from siegebench.tracks import TRACKS

# what so small a run need not have: it asks 120 queries; only a detector that finds the backdoor names a target; the
# others need images of another data set, a defense that rejects, or a backdoor on a certified board
NOT_HERE = {
    "robust_acc@1000", "robust_acc@10000", "target_hit", "named_target", "named_targets", "oscr", "c_rej", "psr",
    "b_rej", "dsr", "ap50", "worst_view_acc", "abstained_triggered", "certified_acc_triggered",
}  # fmt: skip


@pytest.fixture(scope="module")
def real(real_store: Path) -> list[Result]:
    return list(Store(real_store).rows())


def test_every_track_ranks_and_renders(real: list[Result]) -> None:
    boards = rank.boards(real)
    assert {r.cell.track for r in real} == set(TRACKS) == {board.track for board in boards}
    on_boards = {key for board in boards for line in board.lines for key in line.keys}
    assert on_boards == {r.cell.key for r in real}, "rows that no board shows"
    for board in boards:
        assert any(line.value(board.primary) is not None for line in board.lines), board.title
        for column in board.columns:
            shown = [line for line in board.lines if column.id in line.texts or line.value(column.id) is not None]
            assert shown, (board.title, column.id)
    text = page.render(boards, real)
    assert all(row.cell.key in text for row in real)
    assert "Rows on no board" not in text
    for told in (export.as_markdown(boards), export.as_csv(boards), export.as_json(boards)):
        assert len(told) > 1000


def test_every_column_of_stored_figures_is_filled(real: list[Result]) -> None:
    declared = [c for name in dir(columns) if name.isupper() for c in _columns(getattr(columns, name))]
    stored = {c.id for c in declared if find(c.id) is not None}
    filled = {c for board in rank.boards(real) for line in board.lines for c in line.numbers}
    assert stored - filled - NOT_HERE == set(), "columns that nothing fills"


def _columns(found: object) -> list[columns.Column]:
    return [c for c in (found if isinstance(found, tuple) else (found,)) if isinstance(c, columns.Column)]


def test_the_vocabulary_is_what_the_tracks_write(real: list[Result]) -> None:
    def family(name: str) -> str:
        return f"{name.partition('@')[0]}@" if "@" in name else name

    ranked = [row for row in real if row.cell.measure is None and row.cell.study is None]
    assert {family(m) for row in ranked for m in row.metrics} | NOT_HERE & set(METRICS) == set(METRICS)
    rare = {"group@", "abstained_triggered", "certified_triggered@"}  # groups; backdoors on a certified board
    assert {family(s) for row in ranked for s in row.samples} - {"n"} == set(SAMPLES) - rare
    assert {c for row in real for c in row.counts} <= set(COUNTS)
