"""A good submission is accepted, and ranked once others have run it; a comment and a pull request say so."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from siegebench.leaderboard import rank

from siegebench.reporting import report, stored
from siegebench.store import Store
from siegebench.submissions import plausible, validate
from siegebench.submissions.board import beside
from siegebench.submissions.rerun import drawn
from tests import forged, rows, runs
from tests.strangers import EVIL

from .conftest import ONE, Command


def test_a_submission_is_rows_as_stored_and_a_form(made: Path) -> None:
    form = forged.form(made / ONE)
    assert [form[k] for k in ("name", "track", "protocol", "licence")] == ["pgd", "white_box", 1, "MIT"]
    files = {str(p.relative_to(made / ONE)) for p in (made / ONE).rglob("*.*")}
    assert files == {*form["files"], "submission.json"}
    assert len(files) == 4
    paths = {row.cell.key: Store(made / "results").path(row.cell) for row in Store(made / "results").rows()}
    for row in validate.opened(made / ONE).rows.values():
        name = f"rows/{paths[row.cell.key].name}"
        assert (made / ONE / name).read_bytes() == paths[row.cell.key].read_bytes()
    whole = "".join(p.read_text() for p in (made / ONE).rglob("*.*"))
    assert str(made) not in whole


def test_a_good_one_is_accepted_and_not_ranked_until_others_have_run_it(
    here: Path, made: Path, command: Command
) -> None:
    code, out, err = command("submit", "check", "--json", "--store", made / "results")
    assert (code, err) == (0, "")
    (found,) = json.loads(out)["submissions"]
    assert (found["status"], found["rows"], found["rerun"]) == ("claimed", 2, [])
    assert {line["title"] for line in found["lines"]} == {
        "White box: linf 4/255 on digits", "White box: linf 64/255 on digits"
    }  # fmt: skip
    line = rank.boards(stored("nowhere", "submissions"))[0].lines[0]
    assert line.rank is None
    assert any(reason.startswith("claimed: pgd (submitted by Ann Example; nobody else") for reason in line.reasons)
    assert line.texts["run_by"] == "claimed"
    for format_ in ("html", "md", "csv", "json"):
        assert "claimed" in report("nowhere", format_, submissions="submissions")


def test_own_rows_of_the_same_cells_count(here: Path, made: Path) -> None:
    boards = rank.boards(stored(made / "results", "submissions"))
    assert not any("run_by" in line.texts for board in boards for line in board.lines)


def test_a_claimed_row_changes_nothing_that_was_measured(here: Path, made: Path) -> None:
    own = [row for row in Store(made / "results").rows() if row.cell.labels["attack"] == "fgsm"]
    before = rank.boards(own)
    after = rank.boards(beside(own, validate.every(Path("submissions"))))
    assert len(after) == len(before) == 2
    for old, new in zip(before, after, strict=True):
        assert [replace(line, texts=old.lines[0].texts) for line in new.lines] == list(old.lines)
        (told,) = set(new.notes) - set(old.notes)
        assert told.startswith("claimed, not counted: pgd on outsider/tiny / none: Robust ")
        assert "submitted by Ann Example; nobody else has run it" in told


def test_the_lines_of_claimed_rows_alone_come_last() -> None:
    mine = [rows.attacked("autoattack", 100, defense=d, adaptive=d != "none") for d in ("none", "trades")]
    claim = rows.flag("claimed", "fail", "submitted by Ann; nobody else has run it")
    other = rows.attacked("autoattack", 150, defense="pgd_at", adaptive=True, flags=[claim])
    (before,), (board,) = rank.boards(mine), rank.boards([*mine, other])
    assert [(line.names, line.rank, line.flags) for line in board.lines[:2]] == [
        (line.names, line.rank, line.flags) for line in before.lines
    ]
    last = board.lines[2]
    assert (last.names["defense"], last.rank, last.value("robust_acc")) == ("pgd_at", None, 0.75)
    assert [line.texts["run_by"] for line in board.lines] == ["measured here", "measured here", "claimed"]


def test_the_draw_depends_on_everything_and_on_the_salt(here: Path) -> None:
    submission = validate.opened(here)
    assert drawn(submission, 2) == drawn(submission, 2)
    assert len({drawn(submission, 1, str(salt))[0] for salt in range(20)}) == 2
    forged.fill(here, method="Another text.")
    assert len({drawn(validate.opened(here), 1, str(s)) == drawn(submission, 1, str(s)) for s in range(20)}) == 2


def test_cells_are_run_again_and_the_review_says_so(here: Path, command: Command) -> None:
    code, _, err = command("submit", "check", here, "--rerun", 1, "--salt", "x", "--record", "Bob", "--threads", 1)
    assert code == 0, err
    assert json.loads((here / "review.json").read_text())["status"] == "smoke_checked"
    code, out, _ = command("submit", "check", here, "--rerun", 9, "--record", "Bob", "--threads", 1)
    assert code == 0
    assert out.startswith(f"{here}: 2 rows, reproduced, 2 of 2 cells run again agree\n")
    review = json.loads((here / "review.json").read_text())
    assert {cell["agreed"] for cell in review["cells"]} == {"equal"}
    line = rank.boards(stored("nowhere", "submissions"))[0].lines[0]
    assert line.texts["run_by"] == "reproduced"
    assert not any(reason.startswith("claimed") for reason in line.reasons)
    assert "2 of 2 cells run again by Bob" in report("nowhere", "json", submissions="submissions")
    code, _, err = command("submit", "check", here, "--rerun", 1, "--record", "Ann Example", "--threads", 1)
    assert (code, "is the author of the submission" in err) == (2, True)


def test_numbers_that_do_not_come_out_again_are_told(here: Path, command: Command) -> None:
    path = forged.first(here, "64/255")
    forged.edit(path, lambda row: forged.consistent(row, forged.outcome(row, "clean")))
    path = forged.first(here, "4/255")  # and the smaller budget, so that the rows stay monotone
    forged.edit(path, lambda row: forged.consistent(row, forged.outcome(row, "clean")))
    assert command("submit", "check", here)[0] == 0, "no check of the files can tell"
    code, _, err = command("submit", "check", here, "--rerun", 2, "--threads", 1, "--record", "Bob", "--out", "r.json")
    assert code == 1
    told = next(line for line in err.splitlines() if "metrics." in line)
    assert "metrics.robust_acc: claimed" in told
    assert "expected within [" in told
    assert not (here / "review.json").exists()
    code, text, _ = command("submit", "comment", "r.json")
    assert "different." in text
    assert "metrics.robust_acc: claimed" in text


def test_a_warning_that_was_taken_out_of_a_row_is_told() -> None:
    bare, flagged = rows.attacked("pgd", 100), rows.attacked("pgd", 100, flags=[rows.flag("noop_attack")])
    assert plausible.disagreement(bare, flagged) == "flags: claimed without noop_attack, found it"
    assert not plausible.disagreement(flagged, bare)
    assert not plausible.disagreement(flagged, flagged)


def test_a_row_of_no_cell_of_its_suite_is_refused_before_anything_is_computed(here: Path, command: Command) -> None:
    forged.renamed(forged.first(here, "64/255"), lambda row: row["cell"]["threat"].update(eps=63 / 255))
    forged.seal(here)
    code, _, err = command("submit", "check", here, "--rerun", 1)
    assert code == 2
    assert "none of the 4 cells of the suite small.yaml here: another budget" in err


# ------------------------------------------------------------------------------------------------------------ comment


def test_a_report_of_strangers_is_shown_as_code(here: Path, command: Command) -> None:
    command("submit", "check", "--out", "r.json")
    found = json.loads(Path("r.json").read_text())
    one = found["submissions"][0]
    one["who"], one["lines"][0]["entry"] = f"`{EVIL} @somebody [a](https://example.org)", "a|b\n# title"
    Path("r.json").write_text(json.dumps(found))
    code, out, _ = command("submit", "comment", "r.json")
    assert code == 0
    assert f"`'{EVIL} @somebody [a](https://example.org)`" in out
    assert "`a¦b?# title`" in out


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"schema": 1}', "x" * 2**21, '{"schema":1,"protocol":1,"ok":1}'])
def test_what_is_no_report_is_refused(content: str, tmp_path: Path, command: Command) -> None:
    path = tmp_path / "r.json"
    path.write_text(content)
    code, out, err = command("submit", "comment", path)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"{path}: ")


# ------------------------------------------------------------------------------------------------------- pull request


def git(folder: Path, *words: str) -> None:
    who = ("-c", "user.name=Ann", "-c", "user.email=ann@example.org", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


def make(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """make, with this Python and without installing anything."""
    return subprocess.run(
        ["make", "--silent", "--old-file=setup", f"PY={sys.executable}", *words], cwd=folder, capture_output=True,
        text=True, env={**runs.environment(folder.parent / "site"), "MAKEFLAGS": ""},
    )  # fmt: skip


def test_make_checks_what_a_branch_changes(here: Path, tmp_path: Path, command: Command) -> None:
    since = ("submit", "check", "--since", "main", "--out", "out/submissions.json")
    shutil.copy(runs.ROOT / "Makefile", tmp_path)
    shutil.move(tmp_path / "submissions", tmp_path / "theirs")
    git(tmp_path, "init", "--quiet", "--initial-branch", "main")
    git(tmp_path, "add", "Makefile")
    git(tmp_path, "commit", "--quiet", "--message", "Start")
    git(tmp_path, "checkout", "--quiet", "-b", "change")
    assert command(*since) == (0, "no submission to check\n", "")
    assert "changes no submission" in command("submit", "comment", "out/submissions.json")[1]

    shutil.move(tmp_path / "theirs", tmp_path / "submissions")
    git(tmp_path, "add", "submissions")
    git(tmp_path, "commit", "--quiet", "--message", "Rows")
    done = make(tmp_path, "submission-check", "BASE=main")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{here}: 2 rows, claimed\n")
    text = make(tmp_path, "submission-comment").stdout
    assert "**`white_box/pgd`** by `Ann Example`, `MIT`, rows: 2" in text
    assert "| `White box: linf 4/255 on digits` | `outsider/tiny / none` | `Robust " in text

    forged.review(here)
    git(tmp_path, "add", "submissions")
    git(tmp_path, "commit", "--quiet", "--message", "A review of my own")
    code, _, err = command(*since)
    assert code == 2
    assert "review.json: is written by those who run cells again; remove it from this change" in err
    assert "**Refused**" in command("submit", "comment", "out/submissions.json")[1]
    git(tmp_path, "branch", "--force", "main")
    assert command(*since)[1] == "no submission to check\n", "what was merged before is not checked again"

    (tmp_path / "submissions" / "run.sh").write_text("true")
    git(tmp_path, "add", "submissions")
    git(tmp_path, "commit", "--quiet", "--message", "A script")
    code, _, err = command(*since)
    assert (code, err.count("\n")) == (2, 1)
    assert "expected submissions in submissions/TRACK/NAME/; move or remove this file" in err
    assert "**Refused**" in command("submit", "comment", "out/submissions.json")[1]
    code, _, err = command("submit", "check", "--since", "no_such_commit")
    assert (code, "expected a commit of this repository such as origin/main" in err) == (2, True)
