"""Bad submissions are refused in one line, unread or unrun, when they are checked and when they are collected."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from siegebench.leaderboard import rank

from siegebench.errors import ConfigError
from siegebench.reporting import report, stored
from siegebench.submissions import plausible, validate
from siegebench.submissions.board import positions
from tests import forged, runs, strangers

from .conftest import Command

# refused when it arrives; once merged, a change of the entry here makes its rows stale, and boards still show them
OUTDATED = (
    "rows of an unknown entry", "rows of another version", "rows of other code", "rows that do not say their code"
)  # fmt: skip


@pytest.mark.parametrize("case", forged.CASES)
def test_a_bad_one_is_refused_in_one_line(case: str, here: Path, command: Command) -> None:
    change, told = forged.CASES[case]
    change(here)
    code, out, err = command("submit", "check", here, "--rerun", 1)
    assert code == 2, (out, err)
    assert err.count("\n") == 1, err
    assert err[:-1].isprintable()
    assert err.startswith(str(here))
    assert told in err
    assert len(err) < 600
    assert "<img" not in err or "'<img" in err
    assert out == f"{here}: refused\n"
    assert not Path(forged.RAN).exists(), "something in the submission was executed"
    if case not in OUTDATED:
        with pytest.raises(ConfigError):
            report("nowhere", submissions="submissions")


def test_merged_rows_of_other_code_are_stale(here: Path) -> None:
    forged.CASES["rows of other code"][0](here)
    assert "stale" in {f.id for board in rank.boards(stored("nowhere", "submissions")) for f in board.lines[0].flags}


@pytest.mark.parametrize(
    ("attack", "copy"),
    [
        ({"name": "apgd", "version": 1}, True),
        ({"name": "eot", "version": 1, "attack": {"name": "pgd", "version": 1}}, False),
    ],
    ids=["a strong attack", "a wrapper around the same"],
)
def test_the_row_of_one_attack_under_the_name_of_another(attack: dict[str, Any], copy: bool, here: Path) -> None:
    path = forged.first(here, "4/255")
    path.with_name("copy.json").write_bytes(path.read_bytes())
    forged.renamed(path.with_name("copy.json"), lambda row: row["cell"].update(attack=attack))
    forged.seal(here)
    assert (plausible.copied(validate.opened(here).rows, []) is not None) == copy


def test_mutated_submissions_are_refused_in_one_line_or_accepted(here: Path) -> None:
    """Rows and forms with something wrong in them, sealed by their forger: nothing but a refusal may happen."""
    path = forged.first(here, "4/255")
    good, form, seen = json.loads(path.read_text()), forged.form(here), Counter[str]()
    for seed in range(150):
        rng = random.Random(seed)
        path.write_text(json.dumps(good))
        (here / "submission.json").write_text(json.dumps(form))
        if seed % 5:
            path.write_bytes(strangers.written(strangers.mutated(rng, good)))
            forged.seal(here)
        else:
            (here / "submission.json").write_bytes(strangers.written(strangers.mutated(rng, form)))
        try:
            submission = validate.opened(here)
            validate.check(submission)
            positions(submission, [])
            seen["accepted"] += 1
        except ConfigError as error:
            told = str(error)
            assert told.startswith(str(here)), told
            assert told.isprintable(), told
            assert len(told) < 700, told
            seen["refused"] += 1
        except Exception as error:
            error.add_note(f"mutant {seed}")
            raise
    assert seen["refused"] > 80, seen


def test_copied_rows_are_refused(here: Path, command: Command) -> None:
    other = forged.copycat(here)
    code, _, err = command("submit", "check", other)
    assert code == 2
    assert "found the outcomes, counts and metrics of another row, white_box: outsider/tiny / none / pgd" in err
    shutil.rmtree(here)
    code, _, err = command("submit", "check", other)
    assert code == 0, "without the original nobody can tell, except by running it again"


def test_a_linked_folder_is_refused(here: Path, command: Command) -> None:
    link = here.with_name("link")
    link.symlink_to(here.absolute())
    code, _, err = command("submit", "check", link)
    assert (code, "found a link, expected a folder" in err) == (2, True)
    code, _, err = command("submit", "check")
    assert (code, "found a link, expected a folder" in err) == (2, True)


def test_checking_loads_no_torch_and_no_entry(here: Path) -> None:
    probe = (
        "import sys; from siegebench import cli\n"
        "sys.argv = ['siegebench', 'submit', 'check']\n"
        "try: cli.main()\n"
        "except SystemExit as end: code = end.code\n"
        "print(code, 'torch' in sys.modules, 'siegebench.attacks.pgd' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe], env=runs.environment(Path("site").absolute()), capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "0 False False", done.stderr


# ------------------------------------------------------------------------------------------------------------ collect


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("gpd",), "no row of 'gpd' in the store. Did you mean pgd?"),
        (("pgd", "--licence", "GPL-3.0"), "licence: expected the SPDX identifier of a permissive licence"),
        (("pgd", "--track", "query"), "no row of 'pgd' fits --track query; there are rows on white_box"),
        (("pgd", "--board", "x"), "--board x: no such board"),
        (("pgd", "--suite", "smal.yaml"), "--suite smal.yaml: made no row of 'pgd'. Did you mean small.yaml?"),
        (("pgd", "--name", "a/b"), "expected a name in snake_case"),
        (("pgd", "--name", "again", "--who", ""), "who: "),
        (("pgd",), "exists already; choose another name, or --replace"),
    ],
)
def test_what_cannot_be_collected(words: tuple[str, ...], told: str, made: Path, command: Command) -> None:
    given = ["--file", "small.yaml", "--who", "Ann", "--licence", "MIT", "--method", "PGD."]
    code, out, err = command("submit", "new", *given, *words, "--store", "results")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert told in err


def test_a_suite_that_is_not_bundled_has_to_come_along(made: Path, command: Command) -> None:
    code, _, err = command("submit", "new", "pgd", "--who", "A", "--licence", "MIT", "--method", "M", "--name", "b")
    assert code == 2
    assert "small.yaml: this suite made some of the rows and is not bundled: add --file PATH/small.yaml" in err
    assert not (made / "submissions" / "white_box" / "b").exists()
