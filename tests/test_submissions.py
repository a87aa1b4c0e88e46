"""Submissions: a good one is accepted, and ranked once others have run it; bad ones are refused unread or unrun."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from siegebench.leaderboard import rank

from siegebench import api, cli
from siegebench.errors import ConfigError
from siegebench.reporting import report, stored
from siegebench.store import Store
from siegebench.submissions import plausible, validate
from siegebench.submissions.board import beside, positions
from siegebench.submissions.rerun import drawn
from siegebench.workspace import Settings
from tests import forged, rows, runs, strangers
from tests.strangers import EVIL

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a store and the submission of `pgd`, from a run of an attack on an undefended network."""
    folder = tmp_path_factory.mktemp("made")
    patch = pytest.MonkeyPatch()
    with runs.known(folder / "site", patch):
        board = runs.board(
            attacks=["fgsm", {"name": "pgd", "steps": 5}], measures=[],
            threats=[{"norm": "linf", "eps": "4/255"}, {"norm": "linf", "eps": "64/255"}],
        )  # fmt: skip
        suite = runs.suite(folder / "small.yaml", board)
        outcome = api.run(str(suite), Settings(root=str(folder / "results"), threads=1))
        assert outcome.ended == {"ok": 4}
        patch.chdir(folder)
        patch.setattr("sys.argv", ["siegebench", *NEW])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0
        yield folder


NEW = (
    "submit", "new", "pgd", "--who", "Ann Example", "--licence", "MIT", "--method", "Projected gradient descent.",
    "--paper", "https://arxiv.org/abs/1706.06083", "--file", "small.yaml",
)  # fmt: skip
ONE = Path("submissions/white_box/pgd")


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the submission, in the current folder."""
    shutil.copytree(made / "submissions", tmp_path / "submissions")
    monkeypatch.chdir(tmp_path)
    return ONE


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command in this process: (exit code, stdout, stderr)."""

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["siegebench", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return (int(ended.value.code or 0), *capsys.readouterr())

    return call


# --------------------------------------------------------------------------------------------------------------- good


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


# ---------------------------------------------------------------------------------------------------------------- bad


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
