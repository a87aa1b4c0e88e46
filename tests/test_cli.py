"""The command as a user meets it: exit codes, what goes to stdout and what to stderr, one line for what is wrong."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from siegebench import cli, registry
from siegebench.bundled import bundled_suites
from siegebench.cells import Result
from siegebench.cli import listing
from siegebench.kinds import KINDS
from siegebench.store import Store
from tests import runs
from tests.runs import Call


@pytest.fixture(scope="module", autouse=True)
def _outsider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    with runs.known(tmp_path_factory.mktemp("site"), patch):
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a suite of which one attack fails, `s.yaml`, and its store `results`."""
    folder = tmp_path_factory.mktemp("finished")
    bad = {"name": "outsider/step", "ends": "raises", "tag": "bad"}
    runs.suite(folder / "s.yaml", runs.board(attacks=["fgsm", bad]))
    return folder


# --------------------------------------------------------------------------------------------------------------- usage


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rum"], "No such command 'rum'. Did you mean 'run'?"),
        (["run"], "Missing argument"),
        (["run", "quickstart", "--foo"], "No such option: --foo"),
        (["run", "quickstart", "--executor", "loacl"], "'loacl' is not one of 'serial', 'local'"),
        (["run", "quickstart", "--slots", "0"], "greater than or equal to 1"),
        (["run", "quickstart", "--batch", "many"], "valid integer"),
        (["list", "atack"], "list atack: no such list. Did you mean attacks?"),
        (["show"], "Missing argument"),
        (["show", "pdg"], "'pdg' is neither an entry, nor a suite, nor the key of a row in results. Did you mean pgd?"),
        (["show", "quickstrat"], "Did you mean quickstart?"),
        (["show", "0123456789ab"], "nor the key of a row"),
        (["check", "pgd", "--set", "stepz=3"], "attack 'pgd' has no parameter 'stepz'. Did you mean step"),
        (
            ["run", "try"],
            "try.yaml:1:1: nothing to evaluate yet: give an entry, --set attack=NAME or --set defense=NAME",
        ),
        (["report"], "results: no rows here; run a suite first: siegebench run quickstart --store results"),
        (["report", "--format", "pdf"], "unknown format 'pdf'"),
    ],
)
def test_wrong_usage_is_one_line_and_2(words: list[str], said: str, call: Call, tmp_path: Path) -> None:
    code, out, err = call(*words)
    assert code == 2
    assert out == ""
    assert said in err
    assert err.count("\n") == 1
    code, out, err_too = call(*words, "--json")
    assert code == 2
    assert json.loads(out)["error"]["message"] == err_too.rstrip("\n"), "stdout is one JSON document, also for an error"
    assert not any(tmp_path.iterdir())


def test_help_is_there_for_every_command(call: Call) -> None:
    code, out, _ = call("--help")
    assert code == 0
    for name in ("run", "list", "show", "report", "new", "check", "doctor"):
        assert name in out
        code, text, err = call(name, "--help")
        assert (code, err) == (0, "")
        assert "Usage" in text
    assert call()[0] == 2
    assert call("--version")[:2] == (0, f"{cli.__version__}\n")


# -------------------------------------------------------------------------------------------------------- list and show


@pytest.mark.parametrize("kind", listing.LISTED)
def test_list_names_every_entry(kind: str, call: Call) -> None:
    code, out, err = call("list", kind, "--json")
    assert (code, err) == (0, "")
    rows = json.loads(out)
    assert rows
    if kind != "suites":
        assert [r["name"] for r in rows] == registry.names({k.plural: name for name, k in KINDS.items()}[kind])
    code, text, _ = call("list", kind)
    assert code == 0
    assert [line.split()[0] for line in text.splitlines()] == [r["name"] for r in rows]


def test_show_prints_a_card(call: Call) -> None:
    code, out, _ = call("show", "pgd")
    assert code == 0
    assert out.startswith("attack pgd (version ")
    assert "steps: Count = 20  # gradient steps per run." in out
    assert "Random: the starting point" in out
    assert "needs = gradient, norms = linf, l2" in out
    assert "siegebench run try --set attack=pgd" in out
    (card,) = json.loads(call("show", "pgd", "--json")[1])
    assert card["parameters"]["steps"]["type"] == "Count"
    assert call("show", "outsider/step")[0] == 0
    assert "steps: Count = 100  # gradient steps per run." in call("show", "pgd.strong")[1]


def test_show_tells_what_a_defense_declares(call: Call) -> None:
    out = call("show", "fine_tuning")[1]
    assert "trains = True, randomized = False, differentiable = True" in out
    assert "uses the splits clean" in out
    adaptive = [line for line in call("show", "bit_depth")[1].splitlines() if "adaptive attack: " in line]
    assert [json.loads(line.partition(": ")[2])["name"] for line in adaptive] == ["bpda", "bpda"]


def test_show_prints_a_suite(call: Call, finished: Path) -> None:
    code, out, _ = call("show", "quickstart")
    assert code == 0
    assert "autoattack(steps=20, targets=3, queries=100)" in out
    assert out.endswith("siegebench run quickstart --dry-run\n")
    assert call("show", "try")[1].endswith("siegebench run try --set defense=NAME --dry-run\n")
    (shown,) = json.loads(call("show", "quickstart", "--json")[1])
    assert len(shown["boards"]) == 8
    assert "board 0: white_box" in call("show", finished / "s.yaml")[1]


def test_show_prints_everything_of_a_name(call: Call) -> None:
    both = sorted({name for _, name in registry.cards()} & {path.stem for path in bundled_suites()})
    assert "spiking" in both
    for name in both:
        assert {item["kind"] for item in json.loads(call("show", name, "--json")[1])} > {"suite"}
    out = call("show", "spiking")[1]
    assert out.startswith("model spiking (version ")
    assert "\nsuite spiking: " in out


def test_lists_are_named_in_singular_too(call: Call) -> None:
    for kind in ("attack", "defense", "suite"):
        assert call("list", kind) == call("list", f"{kind}s")


def test_light_commands_do_without_torch(tmp_path: Path) -> None:
    code = """
import sys
from siegebench import cli
for words in (["list", "attacks"], ["show", "pgd"], ["--help"], ["report", "--format", "json"]):
    sys.argv = ["siegebench", *words]
    try:
        cli.main()
    except SystemExit as end:
        assert not end.code, (words, end.code)
    assert "torch" not in sys.modules, words
"""
    Store(tmp_path / "results").put(_row())
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=runs.environment(tmp_path / "site"),
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def _row() -> Result:
    from tests.test_store import result

    return result()


def test_a_reader_that_stops_reading_is_no_error(tmp_path: Path) -> None:
    words = runs.command("list", "attacks", folder=tmp_path)
    done = subprocess.run(
        f"{' '.join(words)} | head -n 1", shell=True, cwd=tmp_path, env=runs.environment(tmp_path / "site"),
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


# ------------------------------------------------------------------------------------------------------ run and report


def test_a_dry_run_prints_the_cells_and_writes_nothing(finished: Path, call: Call, tmp_path: Path) -> None:
    code, out, err = call("run", finished / "s.yaml", "--dry-run")
    assert (code, err) == (0, "")
    assert out.endswith("3 cells, 3 to compute\n")
    assert "board 0: white_box: 3 cells, 3 to compute, time unknown\n" in out
    assert out.count("  to do   ") == 3
    rows = json.loads(call("run", finished / "s.yaml", "--dry-run", "--json")[1])
    assert [r["stored"] for r in rows] == [False] * 3
    assert [(r["board"], r["seconds"]) for r in rows] == [(0, None)] * 3
    assert not any(tmp_path.iterdir())


def test_a_run_with_a_failing_cell_is_1_and_the_others_are_done(finished: Path, call: Call) -> None:
    store = finished / "results"
    words = ("run", finished / "s.yaml", "--store", store, "--executor", "serial")
    code, out, err = call(*words, "--json")
    assert code == 1
    assert json.loads(out)["boards"], "stdout is one JSON document"
    assert "RuntimeError: step bad fell over" in err
    assert len(re.findall(r"^\[\d/3\] ok \d+(\.\d)? s: white_box: .*", err, re.MULTILINE)) == 2
    assert len(re.findall(r"^\[\d/3\] error \d+(\.\d)? s: white_box: ", err, re.MULTILINE)) == 1
    assert re.search(r"^training \S+ on 1,\d\d\d images, \d+ epochs?$", err, re.MULTILINE)
    assert re.search(r"; about \d+ s left( \(a guess for \d+ cells?\))?$", err, re.MULTILINE)
    assert err.endswith("3 cells: 2 computed, 1 failed\n")
    (bad,) = [r for r in Store(store).rows() if r.status == "error"]
    hint = f"siegebench show {bad.cell.key[:16]} --store {store}"
    assert hint in err
    code, out, _ = call(*hint.split()[1:])
    assert code == 0
    assert "error: RuntimeError step bad fell over" in out
    (row,) = json.loads(call(*hint.split()[1:], "--json")[1])
    assert row["error"]["traceback"]
    # the time that the rows took is known now
    out = call(*words[:2], "--dry-run", "--store", store)[1]
    assert re.search(r"board 0: white_box: 3 cells, 1 to compute, (about \d+ s|time unknown)\n", out)
    # the page and the tables
    code, out, err = call(*words)
    assert code == 1
    assert f"page: {store / 'small.html'}" in out.replace("\n", "") or "page: " in out
    assert (store / "small.html").read_text().lstrip().lower().startswith("<!doctype html>")
    assert err.endswith("3 cells: 2 stored before, 1 failed\n")


def test_a_row_says_how_to_make_it_again(call: Call, tmp_path: Path) -> None:
    runs.suite(tmp_path / "mine.yaml", runs.board(attacks=["fgsm", {"name": "pgd", "steps": 2}]))
    changes = ("--set", "data.count=20", "--set", "boards.0.attacks.1.steps=3")
    assert call("run", "mine.yaml", *changes, "--executor", "serial")[0] == 0
    row = next(r for r in Store(tmp_path / "results").rows() if (r.cell.attack or {}).get("name") == "pgd")
    code, out, _ = call("show", row.cell.key[:12])
    assert code == 0
    assert re.search(r"^  took \d", out, re.MULTILINE)
    assert "  suite: mine.yaml --set data.count=20 --set boards.0.attacks.1.steps=3\n" in out
    (command,) = re.findall(r"^  make it again: siegebench (.*)$", out, re.MULTILINE)
    (found,) = json.loads(call("show", row.cell.key[:12], "--json")[1])
    assert found["again"] == f"siegebench {command}"
    assert call(*shlex.split(command), "--executor", "serial")[0] == 0
    (same,) = Store(tmp_path / "again").rows()
    assert (same.cell.key, same.metrics, same.samples) == (row.cell.key, row.metrics, row.samples)
    code, _, err = call("run", "mine.yaml", "--only", row.cell.key[:16], "--dry-run")  # without its --set
    assert code == 2
    assert "none of the 3 cells has such a key" in err


def test_a_row_without_a_suite_says_so(call: Call, tmp_path: Path) -> None:
    row = _row()
    other = replace(row, cell=replace(row.cell, model={"name": "mine", "version": 1}))
    for each, told in ((row, "it does not say its suite"), (other, "by sb.evaluate with a model called 'mine'")):
        Store(tmp_path / "results").put(each)
        assert told in call("show", each.cell.key)[1]
        assert json.loads(call("show", each.cell.key, "--json")[1])[0]["again"] is None


@pytest.mark.parametrize("format_", ["html", "md", "csv", "json"])
def test_reports_are_the_result_and_nothing_else(format_: str, call: Call, tmp_path: Path) -> None:
    Store(tmp_path / "results").put(_row())
    code, out, err = call("report", "--format", format_)
    assert (code, err) == (0, "")
    assert out.strip()
    if format_ == "json":
        assert json.loads(out)["boards"]
        assert json.loads(call("report", "--json")[1]) == json.loads(out)
    code, printed, err = call("report", "--format", format_, "--out", "report.txt")
    assert (code, printed, err) == (0, "", "wrote report.txt\n")
    assert (tmp_path / "report.txt").read_text().strip() == out.strip()


def test_a_report_into_a_file_keeps_its_promise_of_json(call: Call, tmp_path: Path) -> None:
    Store(tmp_path / "results").put(_row())
    assert json.loads(call("report", "--out", "r.json", "--json")[1]) == {"wrote": "r.json"}
    assert json.loads((tmp_path / "r.json").read_text())["boards"]


def test_a_report_as_a_picture(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store(tmp_path / "results").put(_row())
    assert "expected a file to write to" in call("report", "--format", "png")[2]
    if shutil.which("chromium"):
        code, out, err = call("report", "--format", "png", "--out", "board.png")
        assert (code, out, err) == (0, "", "wrote board.png\n")
        assert (tmp_path / "board.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr("siegebench.screenshot.PROGRAMS", ())
    code, _, err = call("report", "--format", "png", "--out", "other.png")
    assert code == 2
    assert "none is installed" in err


def test_every_command_completes_names_without_torch(tmp_path: Path) -> None:
    code = """
import sys
from siegebench.cli import complete
assert "pgd" in complete.entries("pg") and "pgd.strong" in complete.entries("pgd")
assert complete.anything("quick") == ["quickstart"]
assert complete.suites("quick") == ["quickstart"] and complete.suites("mi") == ["mine.yaml"]
assert complete.formats("h") == ["html"] and complete.lists("def") == ["defenses"]
assert complete.suites("no/such/folder/") == []
assert "torch" not in sys.modules
"""
    (tmp_path / "mine.yaml").write_text("")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=runs.environment(tmp_path / "site"),
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_foreign_file_in_the_store_is_named(call: Call, tmp_path: Path) -> None:
    (tmp_path / "results" / "rows").mkdir(parents=True)
    (tmp_path / "results" / "rows" / "notes.json").write_text("{}")
    code, out, err = call("report")
    assert (code, out) == (2, "")
    assert "notes.json: " in err
    assert err.count("\n") == 1


def test_a_full_disk_is_one_line(finished: Path, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, os.strerror(28), "results/rows")

    monkeypatch.setattr("siegebench.executors.serial.run_cell", full)
    code, out, err = call("run", finished / "s.yaml", "--executor", "serial")
    assert (code, out) == (1, "")
    assert err == "results/rows: No space left on device; finished rows are kept\n"


def test_ctrl_c_is_130(finished: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    import signal

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr("siegebench.executors.serial.run_cell", stop)
    try:
        code, out, err = call("run", finished / "s.yaml", "--executor", "serial")
    finally:
        signal.signal(signal.SIGINT, before)
    assert (code, out) == (130, "")
    assert err == "interrupted; finished rows are kept, run the same command again to continue\n"


def test_doctor_says_which_label_is_which_class(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SIEGEBENCH_DATA", raising=False)
    for split, names in (("train", ("2", "10", "10/deep")), ("val", ("10",))):
        for name in names:
            path = tmp_path / "mine" / split / name / "a.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (6, 4)).save(path)
    spec = "{name: image_folder, folder: mine, channels: 1}"
    code, out, _ = call("doctor", "--data", spec)
    assert (code, out.splitlines()) == (0, [
        "data set image_folder",
        "  train: 3 images of 6x4 pixels, 1 channel",
        "  val: 1 images of 6x4 pixels, 1 channel",
        "labels",
        "  0: 2 (train 1, val 0)",
        "  1: 10 (train 2, val 1)",
    ])  # fmt: skip
    found = json.loads(call("doctor", "--data", spec, "--json")[1])
    assert found["classes"][1] == {"label": 1, "name": "10", "train": 2, "val": 1}
    assert found["splits"]["val"] == {"images": 1, "channels": 1, "height": 4, "width": 6}
    assert "  9: no name (train 130, test 50)" in call("doctor", "--data", "digits")[1]
    for bad, message in (("mnits", "Did you mean mnist"), ("{", "not YAML"), ("{name: image_folder}", "no folder")):
        code, out, err = call("doctor", "--data", bad)
        assert (code, out) == (2, "")
        assert message in err


def test_doctor_says_what_a_bug_report_needs(call: Call) -> None:
    found = json.loads(call("doctor", "--json")[1])
    assert set(found) >= {"siegebench", "machine", "packages", "extras", "data", "store"}
    assert found["siegebench"]["entries"] == len(registry.cards())
    assert "torch" in call("doctor")[1]
