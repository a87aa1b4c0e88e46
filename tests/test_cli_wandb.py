"""`run --wandb`, `wandb push` and `wandb report` as a user meets them; when W&B breaks down, no result is touched."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from siegebench.leaderboard import wandb_session

from siegebench import api, records
from siegebench.config import load_suite
from siegebench.store import Store
from siegebench.workspace import Settings
from tests import runs, wandb_kit
from tests.rows import attacked
from tests.runs import Call
from tests.test_walk import steps
from tests.wandb_kit import inspect, no_network, of, over_budgets
from tests.wandb_server import ENTITY, serving

wandb = pytest.importorskip("wandb", reason="wandb is not installed")
pytestmark = pytest.mark.usefixtures(no_network.__name__)
RUN = ("run", "s.yaml", "--executor", "serial", "--threads", 1)


@pytest.fixture(scope="module", autouse=True)
def _outsider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    with runs.known(tmp_path_factory.mktemp("site"), patch):
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a suite, `s.yaml`, and its store `results`, made without W&B."""
    folder = tmp_path_factory.mktemp("finished")
    runs.suite(folder / "s.yaml")
    api.run(str(folder / "s.yaml"), Settings(root=str(folder / "results"), threads=1, device="cpu"))
    return folder


def rows(store: Path) -> dict[Path, bytes]:
    """Every file below the rows of a store."""
    return {path.relative_to(store): path.read_bytes() for path in (store / "rows").rglob("*") if path.is_file()}


def copied(finished: Path, target: Path, *, with_rows: bool) -> None:
    runs.suite(target / "s.yaml")
    runs.with_artifacts(finished / "results", target / "results")
    if with_rows:
        for path, content in rows(finished / "results").items():
            (target / "results" / path).parent.mkdir(parents=True, exist_ok=True)
            (target / "results" / path).write_bytes(content)


def offline(folder: Path) -> list[Path]:
    return sorted(folder.glob("results/wandb/offline-run-*"))


def run_id(folder: Path) -> str:
    """`offline-run-DATE_TIME-ID`; a second folder of the same second ends with `-1`."""
    return folder.name.split("-")[3]


# ------------------------------------------------------------------------------------------------------------------ run


def test_a_run_with_wandb_has_the_same_rows_and_one_run(finished: Path, tmp_path: Path, call: Call) -> None:
    copied(finished, tmp_path, with_rows=False)
    code, out, err = call(*RUN, "--wandb", "offline")
    assert code == 0, err
    assert runs.numbers(tmp_path / "results") == runs.numbers(finished / "results")
    (run,) = offline(tmp_path)
    assert f"W&B: {run.relative_to(tmp_path)}" in err
    assert "W&B" not in out
    (record,) = [record for record, _ in records.suites(Store(tmp_path / "results"))[0]]
    seen = inspect(run)
    assert seen["run_id"] == record.id
    assert seen["summary"]["progress/cells_done"] == len(record.cells) == 2
    assert seen["config"]["suite"] == "small"

    before = rows(tmp_path / "results")
    code, out, err = call(*RUN, "--wandb", "offline", "--json")
    assert code == 0, err
    assert json.loads(out)["boards"], "stdout carries the result and nothing else"
    assert rows(tmp_path / "results") == before
    assert len(offline(tmp_path)) == 1
    assert offline(tmp_path) != [run]
    assert re.search(f"offline-run-.*-{record.id}", err)


def test_a_run_is_found_below_the_store_wherever_the_process_of_wandb_was_started(
    finished: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb_session.leave()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    wandb.init(project="other", mode="offline").finish()
    monkeypatch.chdir(tmp_path)
    copied(finished, tmp_path, with_rows=True)
    code, _, err = call(*RUN, "--wandb", "offline")
    assert code == 0, err
    (run,) = offline(tmp_path)
    assert inspect(run)["config"]["suite"] == "small"
    wandb_session.leave()


def broken_log(*_: Any, **__: Any) -> None:
    raise OSError(28, "No space left on device")


def broken_init(*_: Any, **__: Any) -> None:
    raise wandb.errors.CommError("no server")


def broken_finish(*_: Any, **__: Any) -> None:
    raise TimeoutError("no answer")


BREAKS = {
    "the server": lambda patch, store: patch.setattr(wandb, "init", broken_init),
    "the disk": lambda patch, store: patch.setattr(wandb.Run, "log", broken_log),
    "the end": lambda patch, store: patch.setattr(wandb.Run, "finish", broken_finish),
    "the reader": lambda patch, store: patch.setattr("siegebench.leaderboard.wandb_content.board_table", broken_log),
    "the folder": lambda patch, store: (store / "wandb").write_text("a file"),
}


@pytest.mark.parametrize("what", BREAKS)
def test_what_breaks_in_wandb_does_not_touch_a_result(
    what: str, finished: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied(finished, tmp_path, with_rows=True)
    before = rows(tmp_path / "results")
    expected = call(*RUN, "--json")
    with monkeypatch.context() as patch:
        BREAKS[what](patch, tmp_path / "results")
        code, out, err = call(*RUN, "--wandb", "offline", "--json")
    wandb_session.leave()
    assert (code, out) == expected[:2]
    assert rows(tmp_path / "results") == before
    if what != "the folder":  # wandb then writes elsewhere
        assert err.count("W&B: ") == 1, err


KILLED = """
import os, signal, sys
from pathlib import Path
from siegebench import cli
from siegebench.leaderboard import wandb_runs
from tests.runs import children

plain = wandb_runs.Live.ended

def ended(self, *words):
    for pid in children(os.getpid()):
        if b"wandb-core" in (Path("/proc") / str(pid) / "cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
            print("killed", file=sys.stderr)
    plain(self, *words)

wandb_runs.Live.ended = ended
cli.main()
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the process of W&B in /proc")
def test_a_killed_process_of_wandb_does_not_touch_a_result(finished: Path, tmp_path: Path) -> None:
    copied(finished, tmp_path, with_rows=False)
    words = [*map(str, RUN), "--wandb", "offline", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *words], cwd=tmp_path, env=runs.environment(tmp_path / "site"),
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert "killed" in done.stderr
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["boards"]
    assert runs.numbers(tmp_path / "results") == runs.numbers(finished / "results")
    assert "W&B: stopped" in done.stderr


def test_ctrl_c_ends_the_run_and_the_next_one_takes_its_place(
    finished: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied(finished, tmp_path, with_rows=True)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("siegebench.leaderboard.wandb_runs.Live.ended", interrupt)
        code, _, err = call(*RUN, "--wandb", "offline")
    assert code == 130
    assert "finished rows are kept" in err
    (run,) = offline(tmp_path)
    assert of("exit", wandb_kit.records(run))[-1]["exit_code"] == 130
    assert call(*RUN, "--wandb", "offline")[0] == 0
    (again,) = offline(tmp_path)
    assert again != run


def test_without_a_key_or_the_package(
    finished: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied(finished, tmp_path, with_rows=True)
    code, _, err = call(*RUN, "--wandb", "online", "--wandb-runs", "per_line")
    assert code == 0
    assert "no API key" in err
    assert len(offline(tmp_path)) == 1
    monkeypatch.setattr(wandb_session.importlib.util, "find_spec", lambda name: None)
    before = rows(tmp_path / "results")
    for words in ([*RUN, "--wandb", "offline"], ["wandb", "push"], ["wandb", "report", "small", "--dry-run"]):
        code, out, err = call(*words)
        assert (code, out) == (2, "")
        assert "pip install 'siegebench[" in err
    assert rows(tmp_path / "results") == before


def test_one_cell_leaves_the_run_of_the_suite_as_it_is(finished: Path, tmp_path: Path, call: Call) -> None:
    copied(finished, tmp_path, with_rows=True)
    assert call(*RUN)[0] == 0
    (record, found), *_ = records.suites(Store(tmp_path / "results"))[0]
    key = found[0].cell.key
    code, _, err = call(*RUN, "--only", key[:12], "--wandb", "offline")
    assert code == 0, err
    (run,) = offline(tmp_path)
    assert run.name.endswith(key[:16])
    assert records.suites(Store(tmp_path / "results"))[0][0][0] == record


# --------------------------------------------------------------------------------------------------- push and report


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Rows of a suite, and older ones that no record names."""
    made = Store(tmp_path / "results")
    own = over_budgets()
    for row in own:
        row.given["suite"] = {"name": "mine.yaml", "set": []}
        made.put(row)
    made.put(attacked("nes", 90, track="query"))
    records.keep(made, "mine", [], [row.cell.key for row in own])
    return made


def test_push_writes_every_suite_once(store: Store, call: Call, tmp_path: Path) -> None:
    before = rows(store.root)
    code, out, err = call("wandb", "push", "--json")
    assert code == 0, err
    told = json.loads(out)
    assert {s["suite"]: s["rows"] for s in told["suites"]} == {"mine": 4, "rows": 1}
    first = {run["id"] for s in told["suites"] for run in s["runs"]}
    assert {run_id(folder) for folder in offline(tmp_path)} == first
    code, out, err = call("wandb", "push")
    assert code == 0, err
    assert "send with: wandb sync results/wandb/offline-run-*" in out
    assert {run_id(folder) for folder in offline(tmp_path)} == first
    assert len(offline(tmp_path)) == 2
    assert rows(store.root) == before
    code, out, _ = call("wandb", "push", "mine", "--runs", "per_line", "--json")
    assert code == 0
    assert len(json.loads(out)["suites"][0]["runs"]) == 4


def test_rows_that_a_suite_no_longer_has_are_left_out(store: Store, call: Call) -> None:
    keys = [row.cell.key for row in store.rows() if row.given]
    before = records.find(store, "mine")[0]
    records.keep(store, "mine", [], keys[:3])
    code, out, err = call("wandb", "push", "mine", "--json")
    assert code == 0, err
    assert json.loads(out)["suites"][0]["rows"] == 3
    assert json.loads(out)["suites"][0]["runs"][0]["id"] == before.id
    assert records.suites(store)[1] == 1


def test_push_says_when_wandb_fails(store: Store, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb, "init", broken_init)
    code, out, err = call("wandb", "push", "--json")
    assert code == 1
    assert "no server" in err
    assert "no server" in json.loads(out)["suites"][0]["runs"][0]["failed"]


def test_report_needs_no_login_for_a_dry_run(store: Store, call: Call) -> None:
    pytest.importorskip("wandb_workspaces", reason="wandb-workspaces is not installed")
    code, out, err = call("wandb", "report", "mine", "--dry-run")
    assert code == 0, err
    assert json.loads(out)["title"] == "siegebench: mine"
    code, _, err = call("wandb", "report", "mine")
    assert code == 2
    assert "wandb login" in err


def test_report_is_sent_once(store: Store, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb_workspaces", reason="wandb-workspaces is not installed")
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    with serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        wandb_session.leave()
        told = [json.loads(call("wandb", "report", "mine", "--json")[1]) for _ in range(2)]
        assert [t["updated"] for t in told] == [False, True]
        assert len(server.views) == 1
        assert call("wandb", "report", "mine", "--new", "--entity", ENTITY)[0] == 0
        assert len(server.views) == 2
    wandb_session.leave()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["wandb", "push", "--store", "none"], "none: no rows here"),
        (["wandb", "push", "mime"], "no rows of the suite 'mime'. Did you mean mine?"),
        (["wandb", "push", "--mode", "ofline"], "the mode of W&B: expected offline or online, found 'ofline'"),
        (["wandb", "report", "mime", "--dry-run"], "Did you mean mine?"),
        (["wandb", "report", "mine", "--runs", "per_cell"], "a report is about boards"),
        (["run", "s.yaml", "--wandb", "ofline"], "the mode of W&B: expected offline or online, found 'ofline'"),
        (["run", "s.yaml", "--wandb-runs", "per_sweep"], "'per_sweep' is not one of 'per_suite'"),
    ],
)
def test_wrong_usage_is_one_line_and_2(words: list[str], said: str, store: Store, call: Call) -> None:
    code, out, err = call(*words)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


# ------------------------------------------------------------------------------------------------------------ the page

SMALLER = (
    "--executor",
    "serial",
    "--threads",
    1,
    "--set",
    f"models=[{runs.MODEL}]",
    "--set",
    "boards.0.defenses=[none]",
)
SHOWN = [
    "siegebench run mine.yaml --wandb offline --save-images",
    "siegebench wandb push",
    "siegebench wandb push mine --runs per_line",
    "siegebench run mine.yaml --wandb online",
    "siegebench wandb push --mode online",
    "siegebench wandb report mine --dry-run",
    "siegebench wandb report mine",
]


def test_the_page_shows_commands_that_work(
    finished: Path, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb_workspaces", reason="wandb-workspaces is not installed")
    found = list(steps("docs/wandb.md"))
    typed = [
        words for kind, words in found if kind == "command" and isinstance(words, list) and words[0] == "siegebench"
    ]
    assert [" ".join(words) for words in typed] == SHOWN
    ((name, content),) = [text for kind, text in found if kind == "file" and isinstance(text, tuple)]
    (tmp_path / name).write_text(content)
    runs.with_artifacts(finished / "results", tmp_path / "results")
    assert load_suite(str(tmp_path / name)).suite == "mine"
    with serving() as server:
        for words in typed:
            if "online" in words or words[2:] == ["report", "mine"]:
                monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
                monkeypatch.setenv("WANDB_BASE_URL", server.url)
                wandb_session.leave()
            code, _, err = call(*words[1:], *(SMALLER if words[1] == "run" else ()))
            assert code == 0, err
            assert "stopped" not in err
        assert len({given["name"] for given in server.variables("UpsertBucket")}) == 1
        assert len(server.views) == 1
    record, _ = records.find(Store(tmp_path / "results"), "mine")
    (run,) = [folder for folder in offline(tmp_path) if run_id(folder) == record.id]
    assert any(key.startswith("pictures/") for key in inspect(run)["summary"]), "adversarial images are shown"
    wandb_session.leave()
