"""Boards that would share a title are told apart by what they differ in."""

from __future__ import annotations

import re

import pytest
from siegebench.leaderboard import page, rank
from siegebench.leaderboard.cards import as_card, contents
from siegebench.leaderboard.glossary import Glossary

from siegebench.cells import Result
from tests import rows as make
from tests.rows import attacked

from .browser import Page


def on(**data: object) -> Result:
    return attacked("pgd", 4, clean=6, data={**make.DATA, "count": 10, **data})


def titles(*rows: Result) -> list[str]:
    return [board.title for board in rank.boards(rows)]


def test_one_fact_is_enough_where_it_tells_all_apart() -> None:
    assert titles(on()) == ["White box: linf 8/255 on shapes"]
    assert sorted(titles(on(), on(count=20, digest="e" * 64))) == [
        "White box: linf 8/255 on shapes, 10 images", "White box: linf 8/255 on shapes, 20 images"
    ]  # fmt: skip


def test_several_facts_are_named_where_none_is_enough() -> None:
    found = titles(on(), on(count=20, digest="e" * 64), on(count=20, split="val", digest="f" * 64))
    named = ["split test, 10 images", "split test, 20 images", "split val, 20 images"]
    assert sorted(found) == [f"White box: linf 8/255 on shapes, {more}" for more in named]


def test_the_hash_of_the_data_is_the_last_resort() -> None:
    (one, two) = titles(on(), on(digest="e" * 64))
    assert {one[-12:], two[-12:]} == {"d" * 12, "e" * 12}


def test_parameters_of_the_data_are_facts_where_they_are_not_the_defaults() -> None:
    planted = {"name": "planted_features", "version": 1, "availability": 4.0, "nesting": 0}
    (board,) = rank.boards([on(name="planted_features", source=planted)])
    assert board.facts["data parameters"] == "availability=4"


def test_many_boards_are_listed_by_kind_a_line_each() -> None:
    rows = [
        *(attacked("autoattack", 90, threat={**make.LINF, "eps": k / 255}) for k in range(1, page.CARDS + 1)),
        attacked("pgd", 90, threat={**make.LINF, "eps": 30 / 255}),  # not ranked
    ]
    boards = rank.boards(rows)
    text = page.render(boards, rows)
    found = Page(text)
    assert "cards" not in found.classes("ul")
    assert [link for link in found.links if link[1:] in {board.id for board in boards}] == [f"#{b.id}" for b in boards]
    words = " ".join(" ".join(found.words).split())
    about = "The attacker knows the model and its gradients."
    assert f"White box {page.CARDS + 1} White box {page.CARDS + 1} {about} linf 1/255 on shapes" in words
    assert "#kind-0" in found.links
    assert "1 board on which nothing is ranked yet linf 30/255 on shapes" in words


def test_boards_that_rank_most_entries_come_first_in_the_list_and_below(monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = {**make.LINF, "eps": 1 / 255}, {**make.LINF, "eps": 2 / 255}
    rows = [attacked("autoattack", 90, threat=few), attacked("autoattack", 90, threat=many)]
    rows += [attacked("autoattack", 80, threat=many, model="other")]
    boards = rank.boards(rows)
    assert [len(board.ranked) for board in boards] == [1, 2]
    glossary = Glossary([], [])
    (part,) = contents([as_card(board, glossary) for board in boards])
    assert [card["id"] for card in part["boards"]] == [boards[1].id, boards[0].id]
    monkeypatch.setattr(page, "CARDS", 1)
    text = page.render(boards, rows)
    assert re.findall(r'<section class="board" id="(white_box[^"]*)"', text) == [boards[1].id, boards[0].id]
    assert re.findall(r'versus" data-board="(\d)"', text) == ["1"], "the second of the embedded boards; one has no pair"


def test_a_kind_says_once_what_its_boards_are_about() -> None:
    glossary = Glossary([], [])
    texts = {**make.DATA, "name": "reviews", "kind": "text", "digest": "e" * 64}
    boards = rank.boards([attacked("autoattack", 90), attacked("autoattack", 90, data=texts)])
    cards = [as_card(board, glossary) for board in boards]
    assert {card["noun"] for card in cards} == {"image", "text"}
    (part,) = contents(cards)
    assert part["about"] == "The attacker knows the model and its gradients."
    moved = [{**card, "short": f"It moves the {card['noun']}s."} for card in cards]
    assert contents(moved)[0]["about"] == moved[0]["short"]
    other = [cards[0], {**cards[1], "short": "Another sentence."}]
    assert contents(other)[0]["about"] == f"{cards[0]['short']} Another sentence."


def test_measures_stand_above_their_numbers() -> None:
    row = make.measured("none", [], measure="flatness", low=0.5, high=0.75)
    rows = [*(attacked(attack, 90) for attack in ("pgd", "autoattack")), row]
    (board,) = rank.boards(rows)
    assert {c.title for c in board.columns if c.group == "measure"} == {"flatness high", "flatness low"}
    text = page.render([board], rows)
    assert 'colspan="2"><span>flatness</span>' in text
    assert 'colspan="2"><span>Under each attack</span>' in text
    assert text.index("<span>Under each attack</span>") < text.index("<span>flatness</span>")
