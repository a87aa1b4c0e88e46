"""Pages in docs/replications: the command beside a table runs a board with the settings and entries of the page.

A page names the board behind the command: the track, the number of images, the ball, the entries in the table:

    siegebench run gtsrb    # white_box, 30 images, linf 8/255: jpeg, bit_depth, pgd, autoattack
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from siegebench import registry
from siegebench.config import Suite, load_suite
from siegebench.errors import SiegeError
from siegebench.threat import parse_number
from siegebench.tracks import BoardSpec
from siegebench.types import Defense

PAGES = sorted((Path(__file__).resolve().parent.parent / "docs" / "replications").glob("*.md"))
COMMAND = re.compile(r"siegebench run ([^#`\n]+?)(?: *# *([^\n]+?))? *(?=`|\n|$)")
BOARD = re.compile(r"(\w+), (all|\d+) images(?:, (\w+) ([\d./]+))?: ([^:]+)")
KNOWN = (
    "attack",
    "defense",
    "measure",
    "backdoor",
    "detector",
    "camouflage",
    "certifier",
    "theft",
    "leak",
    "sharing",
    "study",
)
UNDECLARED = {"randomized_features.md"}  # a command without a board


def commands(text: str) -> list[tuple[str, str]]:
    """(arguments, board) of the commands of a page."""
    joined = re.sub(r"\\\n\s*", "", text)  # a command may go on in the next line
    return [(found[1], found[2] or "") for found in COMMAND.finditer(joined)]


def suite_of(arguments: str) -> Suite:
    """The suite that a command would run.

    Raises:
        SiegeError, ValueError: when it would be refused.
    """
    name, *rest = shlex.split(arguments)
    options, values = rest[::2], rest[1::2]
    if set(options) - {"--set"}:
        raise ValueError(f"unexpected options {options}")
    return load_suite(name, values)


def names(value: Any) -> set[str]:
    """The names of all entries in a list of specs, of nested ones and of adaptive attacks too."""
    if isinstance(value, str):
        return {value}
    if isinstance(value, BaseModel):  # one of the `inputs` of a board
        return names(value.model_dump())
    if isinstance(value, dict):
        return {n for k, v in value.items() if k in ("name", "attack", "corruption", "set") for n in names(v)}
    return {n for v in value for n in names(v)} if isinstance(value, (list, tuple)) else set()


def entries(board: BoardSpec) -> set[str]:
    found = {n for slot in (*board.slots, "inputs") for n in names(getattr(board, slot, None) or ())}
    found |= names(getattr(board, "search", ()))
    for spec in getattr(board, "defenses", ()):
        found |= names(list(registry.build(Defense, spec).adaptive))
    return found


def differs(suite: Suite, board: BoardSpec, declared: str) -> str:
    """How a board differs from what a page declares; empty if it does not."""
    said = BOARD.fullmatch(declared)
    if said is None:
        return f"{declared!r} is not of the form 'TRACK, N images, NORM EPS: ENTRY, ENTRY'"
    track, count, norm, eps, listed = said.groups()
    data = board.data or suite.data
    if board.track != track or data is None:
        return f"track {board.track}"
    if str(data.count or "all") != count:
        return f"{data.count or 'all'} images"
    balls = [(t.norm, parse_number(t.eps)) for t in getattr(board, "threats", ()) if t.target is None]
    if norm and (norm, parse_number(eps)) not in balls:
        return f"threats {balls}"
    missing = {name.strip() for name in listed.split(",")} - entries(board)
    return f"no {', '.join(sorted(missing))}" if missing else ""


def problem(text: str, page: str) -> str:
    """The first command of a page that does not run what the page says; empty if there is none."""
    found = commands(text)
    for arguments, declared in found:
        try:
            suite = suite_of(arguments)
        except (SiegeError, ValueError) as error:
            return f"siegebench run {arguments}: {error}"
        if not declared:
            return "" if page in UNDECLARED else f"siegebench run {arguments}: the page does not name the board"
        apart = [differs(suite, board, declared) for board in suite.boards]
        if all(apart):
            return f"siegebench run {arguments}: {declared}: found {'; '.join(apart)}"
    listed = {name.strip() for _, declared in found for name in declared.partition(":")[2].split(",")}
    own = Path(page).stem
    known = any((kind, own) in registry.cards() for kind in KNOWN)
    if found and known and page not in UNDECLARED and own not in {name.partition(".")[0] for name in listed}:
        return f"no command names the method {own}"
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_run_what_the_page_says(page: Path) -> None:
    found = problem(page.read_text(encoding="utf-8"), page.name)
    assert not found, f"{page.name}: {found}"


def test_pages_without_a_declared_board_are_those_listed() -> None:
    found = {p.name for p in PAGES if any(not declared for _, declared in commands(p.read_text(encoding="utf-8")))}
    assert found == UNDECLARED


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("gtsrb  # white_box, 30 images, linf 8/255: jpeg, pgd", ""),
        ("gtsrb --set boards.2.data.count=100  # white_box, 100 images, linf 8/255: jpeg, pgd", ""),
        ("gtsrb  # white_box, 100 images, linf 8/255: jpeg, pgd", "30 images"),
        ("gtsrb  # white_box, 30 images, linf 16/255: jpeg, pgd", "threats"),
        ("gtsrb  # white_box, 30 images, linf 8/255: jpeg, mifgsm", "no mifgsm"),
        ("gtsrb  # thirty images", "is not of the form"),
        ("gtsrb", "does not name the board"),
        ("gtsrb_small  # white_box, 30 images, linf 8/255: jpeg", "gtsrb_small"),
        ("gtsrb --set boards.2.data.size=1  # white_box, 30 images, linf 8/255: jpeg", "size"),
        ("gtsrb  # white_box, 30 images, linf 8/255: bit_depth", "no command names the method jpeg"),
    ],
)
def test_what_differs_is_found(command: str, told: str) -> None:
    found = problem(f"text\n\n    siegebench run {command}\n", "jpeg.md")
    assert told in found
    assert bool(found) == bool(told)


def test_a_command_may_stand_in_a_sentence() -> None:
    text = "On signs (`siegebench run gtsrb  # white_box, 30 images, linf 8/255: jpeg`) the accuracy falls."
    assert commands(text) == [("gtsrb", "white_box, 30 images, linf 8/255: jpeg")]
    assert not problem(text, "jpeg.md")
