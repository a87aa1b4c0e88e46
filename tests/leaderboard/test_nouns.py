"""Boards of texts, sequences, films and scenes call their inputs so, wherever they are shown."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console
from siegebench.leaderboard import export, nouns, page, rank, tables

from siegebench.cells import Result
from tests import rows as make
from tests.rows import attacked, flag, named

from .boards import only, ranked_row
from .browser import Page

WORDS = {"text": "text", "sequence": "sequence", "events": "film"}
UNEQUAL = flag("noop_attack", "flag", "the attack changed none of 40 images")


def results(kind: str) -> list[Result]:
    """Rows with as much text as there can be: a tie, a flag, a reason, a published budget of queries."""
    data = {**make.DATA, "count": 40, "kind": kind, "train": 300}
    of: dict[str, Any] = {"data": data, "clean": 36}
    return [
        *ranked_row("autoattack", 20, **of, flags=[UNEQUAL]), *ranked_row("autoattack", 21, defense="trades", **of),
        attacked("pgd", 30, defense="jpeg", **of), attacked("square", 30, track="query", **of),
        attacked("pgd", 4, data={**data, "count": 20, "digest": "e" * 64}, clean=6),
    ]  # fmt: skip


def written(found: list[Result]) -> dict[str, str]:
    """All that is said of rows, by where it is said; the page without what it says of all boards."""
    boards = rank.boards(found)
    out = Console(width=100, file=io.StringIO(), force_terminal=False)
    tables.show(boards, out)
    body = page.render(boards, found).partition("<main")[2].partition('id="glossary"')[0]
    guide = re.compile(r'<details class="guide">.*?</details>', re.DOTALL)
    return {
        "terminal": out.file.getvalue(),  # type: ignore[attr-defined]
        "markdown": export.as_markdown(boards), "page": " ".join(Page(guide.sub("", body)).words),
    }  # fmt: skip


@pytest.mark.parametrize("kind", WORDS)
def test_no_board_of_other_data_says_image(kind: str) -> None:
    for where, text in written(results(kind)).items():
        assert f"{WORDS[kind]}s" in text, where
        assert not (said := re.findall(r".{30}\bimages?\b.{30}", text, re.IGNORECASE)), (where, said)


def test_boards_of_images_say_image() -> None:
    assert all("images" in text for text in written(results("image")).values())


def test_the_words_keep_articles_and_capitals_and_leave_names_alone() -> None:
    told = nouns.said("An image counts; Images per image of an image_set, an Image", "film")
    assert told == "A film counts; Films per film of an image_set, a Film"
    board = only([attacked(named("pgd"), 10, model="image_net", data={**make.DATA, "kind": "text"})])
    assert board.lines[0].names["model"] == "image_net"
    assert board.facts["texts"] == "200"
