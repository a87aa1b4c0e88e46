"""What runs of W&B hold, read with wandb's own reader; that they are never doubled; that no failure of wandb leaves."""

from __future__ import annotations

import copy
import io
import os
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from siegebench.leaderboard import wandb_runs, wandb_session
from siegebench.leaderboard.wandb_content import DONE, FAILED, LEFT, contents, of_suite
from siegebench.leaderboard.wandb_runs import Live, write
from siegebench.leaderboard.wandb_session import Session, Target

from siegebench.cells import Result
from siegebench.errors import ConfigError
from siegebench.store import Store
from tests import rows as make
from tests.rows import attacked, everything, flag
from tests.wandb_kit import inspect, no_network, of, over_budgets, records, suite, table
from tests.wandb_server import ENTITY, serving

wandb = pytest.importorskip("wandb", reason="wandb is not installed")
pytestmark = pytest.mark.usefixtures(no_network.__name__)
SECONDS = 10.0  # for the rows of a large suite


def folders(store: Path) -> list[Path]:
    return sorted(store.glob("wandb/offline-run-*"))


def picture(*_: Any) -> list[tuple[str, bytes]]:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 10, 10)).save(out, "PNG")
    return [("17", out.getvalue())]


def test_the_run_of_a_suite_holds_its_boards_charts_pictures_and_rows(tmp_path: Path) -> None:
    rows = over_budgets()
    record, boards, rows = suite([*rows, attacked("fgsm", 99, flags=[flag("nan")])])
    content = of_suite(record, boards, rows, "<html>", picture)
    before = copy.deepcopy([row.as_dict() for row in rows])
    (session,) = write([content], Target(tmp_path, project="mine"))
    assert not session.failed
    assert [row.as_dict() for row in rows] == before
    (run,) = folders(tmp_path)
    assert Path(session.place) == run
    seen = inspect(run)
    assert (seen["run_id"], seen["project"], seen["name"], seen["state"]) == (record.id, "mine", "every", "finished")
    assert set(seen["tags"]) == {"shapes", "white_box"}
    assert seen["config"] == content.config
    for name, value in content.summary.items():
        assert seen["summary"][name] == value
    assert content.names <= seen["summary"].keys(), "every name that is promised was written"
    assert {name for name in seen["summary"] if not name.startswith("_")} == content.names

    for board in boards:
        written = table(run, seen, f"boards/{board.id}")
        assert [row["robust_acc"] for row in written] == [line.value("robust_acc") for line in board.lines]
        assert [row["rank"] for row in written] == [line.place for line in board.lines]
        shown = seen["summary"][f"pictures/{board.id}"]
        assert shown["count"] == sum(len(line.keys) for line in board.lines)
        assert f"{boards[0].lines[0].title}: autoattack, 17" in seen["summary"][f"pictures/{boards[0].id}"]["captions"]
        assert (run / "files" / shown["filenames"][0]).is_file()
    (sweep,) = (name for name in content.charts if name not in {f"charts/{board.id}" for board in boards})
    assert ("resnet / none", 8.0) in {
        (row["entry"], row["linf eps / 255"]) for row in table(run, seen, f"{sweep}_table")
    }
    assert "nan" in {row["flag"] for row in table(run, seen, "flags")}

    (artifact,) = [a for a in of("artifact", records(run)) if a["type"] == "results"]
    assert artifact["name"] == f"siegebench-{record.id}"
    assert "latest" in artifact["aliases"]
    assert any(alias.startswith("rows-") for alias in artifact["aliases"])
    held = {entry["path"]: Path(entry["local_path"]) for entry in artifact["manifest"]["contents"]}
    assert held.keys() == {"rows.jsonl", "page.html"}
    assert held["rows.jsonl"].read_bytes() == content.files["rows.jsonl"]
    assert held["rows.jsonl"].is_relative_to(tmp_path), "nothing is written outside of the store"

    everything = b"".join(f.read_bytes() for f in run.rglob("*") if f.is_file())
    assert b"secret-host" not in everything
    assert socket.gethostname().encode() not in everything or len(socket.gethostname()) < 4
    assert str(Path.home()).encode() not in everything or str(Path.home()) == "/"
    assert os.environ.get("WANDB_DISABLE_CODE") is None  # put back


def test_the_progress_of_a_run_and_then_its_rows_under_the_same_id(tmp_path: Path) -> None:
    record, boards, rows = suite([attacked("autoattack", 50), make.broken(attacked("pgd", 3))])
    live = Live(record, Target(tmp_path), total=2)
    live.ended("ok", 7.26)
    live.ended("error", None)
    live.write(of_suite(record, boards, rows))
    (run,) = folders(tmp_path)
    found = records(run)
    progress = [{k: v for k, v in h["item"].items() if k in (DONE, FAILED, LEFT)} for h in of("history", found)]
    assert progress == [{DONE: 1, FAILED: 0, LEFT: 7.3}, {DONE: 2, FAILED: 1}, {DONE: 2, FAILED: 1, LEFT: 0.0}]
    assert of("run", found)[0]["run_id"] == record.id
    assert of("exit", found)[-1]["exit_code"] == 1, "a cell has failed"

    write(contents("per_suite", record, boards, rows), Target(tmp_path))
    (again,) = folders(tmp_path)
    assert again != run, "the new run has taken the place of the one that was not sent"
    assert f"-{record.id}" in again.name  # a second folder of the same second ends with `-1`

    sent = again / f"run-{record.id}.wandb.synced"
    sent.touch()
    write(contents("per_suite", record, boards, rows[:1]), Target(tmp_path))
    assert len(folders(tmp_path)) == 2, "a run that was sent is not removed"


def test_at_most_one_message_a_second_about_the_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, float]] = []
    monkeypatch.setattr(wandb_runs.Session, "_start", lambda self, about: None)
    monkeypatch.setattr(wandb_runs.Session, "do", lambda self, call: call(None, Run(told)))
    live = Live(suite([attacked("pgd", 3)])[0], Target(tmp_path), total=300)
    for _ in range(300):
        live.ended("cached", 1.0)
    assert [step[DONE] for step in told] == [1, 300]


class Run:
    """Takes what is logged."""

    def __init__(self, told: list[dict[str, float]]) -> None:
        self.log = told.append

    def define_metric(self, *_: Any, **__: Any) -> None:
        pass


def test_a_run_that_another_process_is_writing_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = of_suite(*suite([attacked("pgd", 100)]))
    with Store(tmp_path).lock(f"wandb-{content.id}", wait=False) as mine:
        assert mine
        (session,) = write([content], Target(tmp_path))
    assert "another process" in session.failed
    assert "another process" in capsys.readouterr().err
    assert folders(tmp_path) == []


@pytest.mark.parametrize("place", ["init", "log", "finish"])
def test_a_failing_wandb_is_one_warning(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[str] = []

    class Run:
        dir = str(tmp_path / "run" / "files")
        url = None
        config = summary = type("Kept", (dict,), {"update": lambda *_, **__: None})()

        def define_metric(self, *_: Any, **__: Any) -> None:
            pass

        def log(self, numbers: Any) -> None:
            calls.append("log")
            if place == "log":
                raise OSError(28, "No space left on device")

        def log_artifact(self, *_: Any, **__: Any) -> None:
            calls.append("artifact")

        def finish(self, exit_code: int) -> None:
            calls.append("finish")
            if place == "finish":
                raise TimeoutError("no answer\nfor 120 s")

    def init(**kwargs: Any) -> Run:
        if place == "init":
            raise wandb.errors.CommError("no server")
        return Run()

    monkeypatch.setattr(wandb, "init", init)
    rows = [attacked("pgd", 100), attacked("fgsm", 120)]
    before = copy.deepcopy([r.as_dict() for r in rows])
    record, boards, rows = suite(rows)
    sessions = write([*contents("per_suite", record, boards, rows), *contents("per_cell", record, boards, rows)],
                     Target(tmp_path))  # fmt: skip
    assert len(sessions) == 1, "nothing is written after the first failure"
    assert [r.as_dict() for r in rows] == before
    assert calls == {"init": [], "log": ["log", "finish"], "finish": ["log", "artifact", "finish"]}[place]
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert {"init": "no server", "log": "No space left", "finish": "no answer for 120 s"}[place] in said[0]


def test_online_without_a_key_stays_offline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert Target(tmp_path, mode="online").checked().mode == "offline"
    assert "no API key" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="the mode of W&B: expected offline or online, found 'ofline'"):
        Target(tmp_path, mode="ofline").checked()  # type: ignore[arg-type]


def test_online_a_suite_is_sent_to_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    record, boards, rows = suite([attacked("autoattack", 50), attacked("pgd", 70)])
    content = of_suite(record, boards, rows, "<html>")
    with serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        wandb_session.leave()  # W&B reads the environment once
        target = Target(tmp_path, entity=ENTITY, mode="online").checked()
        assert target.mode == "online"
        live = Live(record, target, total=1)
        live.ended("ok", 0.0)
        live.write(content)
        wandb_session.leave()
        assert not live.session.failed
        assert live.session.place == f"{server.url}/{ENTITY}/siegebench/runs/{record.id}"
        runs = server.variables("UpsertBucket")
        assert {run["name"] for run in runs} == {record.id}, "one run"
        assert runs[0]["groupName"] == "every"
        history = {key for step in server.lines["wandb-history.jsonl"] for key in step}
        assert {DONE, *content.tables, *content.charts.keys()} - history == set(content.charts)
        final = server.lines["wandb-summary.json"][-1]
        for name, value in content.summary.items():
            assert final[name] == value
        uploaded = {path.rpartition("/upload/")[2] for path in server.uploaded}
        assert {"rows.jsonl", "page.html", "config.yaml"} <= uploaded
    assert not (tmp_path / "wandb" / "staged" / record.id).exists(), "what was sent is not kept"


def many(count: int) -> list[Result]:
    """The rows of a large suite, made by the test kit: white-box, query and backdoor boards, detectors."""
    rows = everything()
    return [*rows, *(replaced(rows[i], 1 + i // len(rows)) for i in range(count - len(rows)))]


def replaced(row: Result, seed: int) -> Result:
    return replace(row, cell=replace(row.cell, seed=row.cell.seed + 1000 * seed))


def test_a_suite_of_300_cells_costs_one_run_and_at_most_ten_seconds(tmp_path: Path) -> None:
    record, boards, rows = suite(many(300))
    assert len({row.cell.key for row in rows}) == 300
    Session(Target(tmp_path), "warm").close()  # the process of W&B, and its imports
    begin = time.perf_counter()
    (session,) = write([of_suite(record, boards, rows, "<html>" * 10**5)], Target(tmp_path))
    took = time.perf_counter() - begin
    assert not session.failed
    assert len([f for f in folders(tmp_path) if record.id in f.name]) == 1
    assert took < SECONDS
