"""The documentation site: every page and link, and the Python reference from the docstrings."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import siegebench as sb

ROOT = Path(__file__).resolve().parent.parent

needs_mkdocs = pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="no mkdocs: the extra `site`")


@needs_mkdocs
def test_the_site_builds_without_a_warning_and_shows_what_is_public(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "own_network" in (tmp_path / "index.html").read_text(encoding="utf-8")
    reference = "".join(page.read_text(encoding="utf-8") for page in (tmp_path / "reference").rglob("*.html"))
    for name in sb.__all__:
        assert re.search(rf'id="siegebench\.\w+\.{name}"', reference), name
    for page in (ROOT / "docs").glob("*.md"):
        assert (tmp_path / page.stem / "index.html").is_file(), page.name
    loaded = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)', reference)
    assert not loaded, "the site loads nothing from other servers"


def test_every_page_of_the_documentation_is_in_the_menu() -> None:
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    listed = set(re.findall(r": (\S+\.md)$", menu, re.MULTILINE))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} <= listed
    assert {"replications/README.md", "decisions/index.md"} <= listed


def test_decisions_are_numbered_without_gaps() -> None:
    numbers = [int(page.name[:3]) for page in sorted((ROOT / "docs" / "decisions").glob("*.md"))]
    assert numbers == list(range(1, len(numbers) + 1))


def test_the_citation_names_the_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == sb.__version__
    assert cited["license"] == "Apache-2.0"


def test_the_container_runs_a_suite_that_exists() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    (suite,) = re.findall(r'CMD \["run", "(\w+)"\]', text)
    assert (ROOT / "suites" / f"{suite}.yaml").is_file()
