"""The pages say what is there: the catalogue equals the cards, the README names every command and suite."""

from __future__ import annotations

import re
from pathlib import Path

from siegebench import catalogue
from siegebench.bundled import bundled_suites
from siegebench.cli import app
from siegebench.config import load_suite

ROOT = Path(__file__).resolve().parent.parent


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


def test_every_replication_page_is_on_the_index() -> None:
    folder = ROOT / "docs" / "replications"
    pages = {page.name for page in folder.glob("*.md")} - {"README.md"}
    assert set(re.findall(r"\]\((\w+\.md)\)", (folder / "README.md").read_text())) == pages


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
