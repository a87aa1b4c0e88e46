"""Titles tell cells apart that are shown together, and name only what differs."""

from __future__ import annotations

from dataclasses import replace

from siegebench.cells import Cell
from siegebench.config import load_suite
from siegebench.plan import plan
from siegebench.titles import display, titles
from tests import rows

BASE = rows.attacked("pgd", 50).cell


def with_attack(**parameters: object) -> Cell:
    return replace(BASE, attack={"name": "pgd", "version": 1, **parameters})


def parts(cells: list[Cell]) -> list[str]:
    """The part of each title that names the attack."""
    return [titles(cells)[cell.key].split(" / ")[2] for cell in cells]


def test_parameters_that_differ_are_named_where_they_are_not_the_default() -> None:
    usual, long = with_attack(steps=20, restarts=1, loss="ce"), with_attack(steps=50, restarts=5, loss="ce")
    assert parts([usual, long]) == ["pgd", "pgd(restarts=5, steps=50)"]
    assert parts([long]) == ["pgd"], "alone it needs no more than its name"


def test_every_cell_of_the_quickstart_has_a_title_of_its_own() -> None:
    cells = plan(load_suite("quickstart")).cells
    found = titles(cells)
    assert len(set(found.values())) == len(cells) > len({cell.title for cell in cells})
    assert (
        "white_box: byobnet_tiny / logit_scaling / pgd(loss=margin, steps=50) / linf 3/255 (seed 0)" in found.values()
    )
    assert "input_detection: byobnet_tiny / sig / strip(alpha=1) (seed 0)" in found.values()


def test_what_differs_outside_of_the_entries_is_named_too() -> None:
    small = replace(BASE, data={**BASE.data, "count": 7, "digest": "0" * 64})
    other = replace(BASE, data={**BASE.data, "digest": "1" * 64})
    found = list(titles([BASE, small, other]).values())
    assert len(set(found)) == 3
    assert found[1].endswith(f", {BASE.data['split']} 7 of {BASE.data['name']}")


def test_entries_that_nobody_knows_are_told_apart() -> None:
    strange = [{"name": "strange", "version": 1, "depth": {"x": [1, 2], "y": v}} for v in ("a" * 40, "a" * 41)]
    assert len(set(display("attack", strange).values())) == 2


def test_stored_files_keep_their_names() -> None:
    assert with_attack(steps=50).file.rpartition("/")[2].startswith("pgd-")
