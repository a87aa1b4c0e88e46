"""The page on submitting, word for word; and a whole pull request on a local git server."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from siegebench import kinds
from tests import runs
from tests.test_walk import ROOT, steps
from tests.walking import walk

PAGE = "docs/submitting.md"


def test_the_commands_of_the_page_run(tmp_path: Path) -> None:
    wanted = list(steps(PAGE))
    said = {}
    for kind, text, code, out, err in walk(ROOT, wanted, tmp_path):
        assert code == 0, (text, out, err)
        if kind == "command":
            said[" ".join(map(str, text))] = out
    (checked,) = [out for words, out in said.items() if "--salt today" in words]
    assert checked.startswith("submissions/white_box/pgd: 1 row, reproduced, 1 of 1 cells run again agree\n")
    (comment,) = [out for words, out in said.items() if words.startswith("siegebench submit comment")]
    assert "**`white_box/pgd`** by `Ann Example`, `MIT`, rows: 1" in comment
    (shown,) = [out for words, out in said.items() if words.startswith("siegebench report")]
    assert "reproduced" in shown


# --------------------------------------------------------------------------------------------------- a pull request


def git(folder: Path, *words: str) -> str:
    who = ("-c", "user.name=Ann", "-c", "user.email=ann@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", *who, *words], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def command(checkout: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A command in a checkout, with the code of that checkout."""
    env = {**runs.environment(checkout.parent / "site"), "PYTHONPATH": str(checkout), "MAKEFLAGS": ""}
    return subprocess.run(words, cwd=checkout, env=env, capture_output=True, text=True, timeout=500)


def siegebench(checkout: Path, *words: str) -> str:
    done = command(checkout, sys.executable, "-m", "siegebench", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def make(checkout: Path, *words: str) -> str:
    done = command(checkout, "make", "--silent", "--old-file=setup", f"PY={sys.executable}", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


SUITE = """
suite: low_contrast
data: {set: digits, count: 30}
models: [{name: byobnet_tiny, recipe: {epochs: 2}}]
boards:
  - track: white_box
    defenses: [none, low_contrast]
    attacks: [{name: pgd, steps: 5}]
    threats: [{norm: linf, eps: 4/255}]
    search: none
    measures: []
"""


@pytest.mark.slow
def test_a_whole_pull_request(tmp_path: Path) -> None:
    start, server = tmp_path / "start", tmp_path / "server.git"
    start.mkdir()
    for name in ("siegebench", *kinds.FOLDERS, "leaderboard", "suites", "submissions", ".github"):
        shutil.copytree(ROOT / name, start / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "constraints.txt", "Makefile", ".gitignore"):
        shutil.copy(ROOT / name, start)
    git(start, "init", "--quiet", "--initial-branch", "main")
    git(start, "add", ".")
    git(start, "commit", "--quiet", "--message", "Start")
    git(tmp_path, "clone", "--quiet", "--bare", start.as_uri(), str(server))

    author = tmp_path / "author"
    git(tmp_path, "clone", "--quiet", server.as_uri(), str(author))
    git(author, "checkout", "--quiet", "-b", "low-contrast")
    siegebench(author, "new", "defense", "low_contrast")
    (author / "low_contrast.yaml").write_text(SUITE)
    siegebench(author, "run", "low_contrast.yaml", "--executor", "serial", "--threads", "1")
    told = ("--who", "Ann", "--licence", "MIT", "--method", "Lowers the contrast.", "--file", "low_contrast.yaml")
    siegebench(author, "submit", "new", "low_contrast", *told)
    git(author, "add", "defenses", "submissions")
    git(author, "commit", "--quiet", "--message", "low_contrast, and its rows")
    git(author, "push", "--quiet", "origin", "low-contrast")

    # the job without permissions has the contribution, and runs it
    job = tmp_path / "job"
    git(tmp_path, "clone", "--quiet", "--branch", "low-contrast", server.as_uri(), str(job))
    checked = make(job, "submission-check", "BASE=origin/main", "RERUN=1", "SALT=17")
    assert "white_box/low_contrast: " in checked
    assert "1 of 1 cells run again agree" in checked

    # the job that may comment has the default branch, and one file
    trusted = tmp_path / "trusted"
    git(tmp_path, "clone", "--quiet", server.as_uri(), str(trusted))
    (trusted / "out").mkdir()
    shutil.copy(job / "out" / "submissions.json", trusted / "out")
    assert not (trusted / "defenses" / "low_contrast.py").exists()
    comment = make(trusted, "submission-comment")
    assert "**`white_box/low_contrast`** by `Ann`, `MIT`" in comment
    assert "| `White box: linf 4/255 on digits` | `byobnet_tiny / low_contrast` |" in comment
    assert "Status: claimed" in comment

    # it is merged, and somebody else runs all of it
    main = tmp_path / "main"
    git(tmp_path, "clone", "--quiet", server.as_uri(), str(main))
    git(main, "merge", "--quiet", "origin/low-contrast")
    listed = json.loads(siegebench(main, "report", "--submissions", "submissions", "--json"))
    (line,) = [line for board in listed["boards"] for line in board["lines"]]
    assert (line["texts"]["run_by"], line["rank"]) == ("claimed", None)
    one = "submissions/white_box/low_contrast"
    siegebench(main, "submit", "check", one, "--rerun", "99", "--record", "Bob", "--threads", "1")
    listed = json.loads(siegebench(main, "report", "--submissions", "submissions", "--json"))
    (line,) = [line for board in listed["boards"] for line in board["lines"]]
    assert line["texts"]["run_by"] == "reproduced"
    assert not any(reason.startswith("claimed") for reason in line["reasons"])
    assert "byobnet_tiny" in siegebench(main, "report", "--submissions", "submissions", "--format", "html")
