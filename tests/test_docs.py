"""The pages say what is there: the catalogue equals the cards, the README names every command and suite, and the index
of the replications has every page and no figure that its page lacks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from siegebench import catalogue, registry
from siegebench.bundled import bundled_suites
from siegebench.cli import app
from siegebench.config import load_suite
from siegebench.tracks import TRACKS

ROOT = Path(__file__).resolve().parent.parent
REPLICATIONS = ROOT / "docs" / "replications"
ORDER = (
    "white_box", "query", "transfer", "patch", "camouflage", "corruption", "backdoor", "poisoning", "input_detection",
    "model_detection", "certified", "extraction", "privacy", "study", "measure",
)  # fmt: skip
SYSTEM = re.compile(r"\[([\w, ]+)\]\((\w+)\.md\)")
VERDICT = re.compile(r"\*\*(holds|partly|does not hold|not shown|not measured here)\*\*: (.+)")
FIGURE = re.compile(r"\.?\d+(?:[.,/]\d+)*")
ATTACKS, DEFENSES = ("attack", "backdoor", "camouflage", "theft", "leak"), ("defense", "sharing")
SOURCES = ("model", "object_detector", "dataset")  # their `paper` says where a network or a data set comes from
NO_ENTRY = {"attributes", "dlv", "medical", "soundness"}  # pages about a script, a test, a board or a command
WITHOUT_PAGE = {
    "art": "a library; docs/conformance.md compares its attacks",
    "torchattacks": "a library; docs/conformance.md compares its attacks",
    "distances": "runs the attack of fmn.md; claims nothing of its own",
    "gradient_norm": "an estimate without the guarantee of its paper, tested in closed form",
    "logit_scaling": "a planted control; docs/conditions.md",
    "masking": "checks that papers recommend; docs/conditions.md",
}


def test_the_catalogue_is_what_the_cards_say() -> None:
    written = (ROOT / "docs" / "catalogue.md").read_text(encoding="utf-8")
    assert written == catalogue.render(), "run `make docs`"


def test_the_page_explains_flags_as_the_docs_do() -> None:
    written = (ROOT / "leaderboard" / "flags.json").read_text(encoding="utf-8")
    assert written == catalogue.flags((ROOT / "docs" / "flags.md").read_text(encoding="utf-8")), "run `make docs`"


def test_the_readme_names_every_command() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for command in app.registered_commands:
        name = command.name or command.callback.__name__.rstrip("_")
        assert f"siegebench {name}" in text, name


def test_the_readme_names_every_suite_and_each_one_is_valid() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in bundled_suites():
        assert f"`{path.stem}`" in text
        overrides = ["defense=jpeg"] if path.stem == "try" else []  # it evaluates what it is told
        assert load_suite(str(path), overrides).suite == path.stem


def test_the_suite_in_the_readme_is_valid(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    file = tmp_path / "mine.yaml"
    file.write_text(block, encoding="utf-8")
    assert load_suite(str(file)).suite == "mine"


class Line(NamedTuple):
    """A line of the index of the replications."""

    track: str
    system: str
    claim: str
    source: str
    number: str
    verdict: str

    @property
    def names(self) -> list[str]:
        return [name for listed, _ in SYSTEM.findall(self.system) for name in listed.split(", ")]

    @property
    def pages(self) -> list[str]:
        return [page for _, page in SYSTEM.findall(self.system)]

    @property
    def place(self) -> tuple[int, int, str]:
        """By track; within a track attacks, then defenses, then all others; then by name."""
        kinds = {kind for kind, name in registry.cards() if name == self.names[0]}
        role = 0 if kinds.intersection(ATTACKS) else 1 if kinds.intersection(DEFENSES) else 2
        return ORDER.index(self.track), role, self.names[0]


def index() -> list[Line]:
    """The lines of the one table of the index; fails if there is another table, or none."""
    text = (REPLICATIONS / "README.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    cells = [[cell.strip() for cell in line[1:-1].split("|")] for line in table.splitlines()]
    assert cells[0] == ["track", "system", "claim", "source", "our number", "verdict"]
    assert {len(line) for line in cells} == {6}, next(line for line in cells if len(line) != 6)
    return [Line(*line) for line in cells[2:]]


def test_the_index_of_replications_is_sorted_by_track() -> None:
    assert set(ORDER) == {*TRACKS, "measure"}
    lines = index()
    assert [line.system for line in lines] == [line.system for line in sorted(lines, key=lambda line: line.place)]


def test_every_replication_page_is_on_one_line_of_the_index() -> None:
    pages = sorted(page.stem for page in REPLICATIONS.glob("*.md") if page.name != "README.md")
    assert sorted(page for line in index() for page in line.pages) == pages


def test_lines_of_the_index_are_short_and_begin_with_a_verdict() -> None:
    for line in index():
        verdict = VERDICT.fullmatch(line.verdict)
        assert verdict, (line.system, line.verdict)
        assert max(len(line.claim.split()), len(verdict[2].split())) <= 15, (line.claim, verdict[2])
        assert line.source
        assert line.number or verdict[1] == "not measured here", line.system


def lacking(line: Line, text: str) -> list[str]:
    """What a line has and its page has not: figures of `our number`, arXiv numbers, names of systems."""
    figures = [
        f for f in FIGURE.findall(line.number) if not re.search(rf"(?<!\d)(?<!\d[.,/]){re.escape(f)}(?![.,/]?\d)", text)
    ]
    papers = [number for number in re.findall(r"arXiv ([\d.]+\d)", line.source) if number not in text]
    names = [name for name in line.names if name not in line.pages and not re.search(rf"\b{name}\b", text)]
    return figures + papers + names


def test_what_the_index_says_is_on_the_page() -> None:
    for line in index():
        text = "\n".join((REPLICATIONS / f"{page}.md").read_text(encoding="utf-8") for page in line.pages)
        assert not lacking(line, text), (line.system, lacking(line, text))


@pytest.mark.parametrize(
    ("number", "missing"),
    [
        ("23.0 % left; 1/255", []),
        ("3.0 %", ["3.0"]),
        ("23 %", ["23"]),
        ("0 of 1,000, .17", ["0", ".17"]),
        ("1,00", ["1,00"]),
    ],
)
def test_figures_must_be_on_the_page_as_they_are(number: str, missing: list[str]) -> None:
    line = Line("query", "[rays](rays.md)", "", "Chen, arXiv 2006.12792", number, "")
    assert lacking(line, "arXiv 2006.12792: 23.0 %, 1/255, 1,000 queries, 0.17") == missing


def test_every_entry_with_a_paper_is_on_a_page() -> None:
    named = {name for line in index() for name in line.names}
    cards = registry.cards()
    assert named - NO_ENTRY <= {name for _, name in cards}
    method = {name for (kind, name), found in cards.items() if found.card.paper and kind not in SOURCES}
    assert method - named == set(WITHOUT_PAGE), "write docs/replications/NAME.md and its line in the README there"


def test_files_of_the_repository_that_pages_name_exist() -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        for name in re.findall(r"\btests/[\w/]+\.py\b", page.read_text(encoding="utf-8")):
            assert (ROOT / name).is_file(), (page.name, name)


def test_every_flag_is_explained() -> None:
    text = (ROOT / "docs" / "flags.md").read_text(encoding="utf-8")
    sources = [p for folder in ("siegebench", "measures", "leaderboard") for p in (ROOT / folder).rglob("*.py")]
    raised = re.compile(r'(?:\bFlag|report\.flag)\(\s*"(\w+)"|\bMark\(\s*(?:"\w+"|severity),\s*"(\w+)"')
    found = {a or b for path in sources for a, b in raised.findall(path.read_text(encoding="utf-8"))}
    assert len(found) > 15
    assert found <= set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
