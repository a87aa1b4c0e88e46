"""The W&B mirror: what wandb's own reader finds in the runs, and that no failure of wandb leaves it."""

from __future__ import annotations

import copy
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from siegebench.leaderboard import wandb_mirror
from siegebench.leaderboard.wandb_mirror import mirror

from siegebench.errors import ConfigError, MissingExtra
from tests import rows as make
from tests.rows import attacked, flag, repaired

wandb = pytest.importorskip("wandb", reason="wandb is not installed")


def inspect(run: Path) -> dict[str, Any]:
    """The run as wandb's own command-line reader sees it."""
    command = shutil.which("wandb", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if command is None or subprocess.run([command, "leet", "--help"], capture_output=True).returncode != 0:
        pytest.skip("this wandb has no `leet inspect`")
    done = subprocess.run([command, "leet", "inspect", "--summary", "--json", str(run)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", os.devnull)
    plain = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"the mirror reached for {address}")
        plain(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)


def test_a_run_holds_every_number_of_its_row(tmp_path: Path) -> None:
    row = attacked("pgd", 100, model="resnet18", defense="jpeg", flags=[flag("nan")])
    failed = make.broken(attacked("fgsm", 3))
    before = copy.deepcopy([row.as_dict(), failed.as_dict()])
    runs = mirror([row, failed], project="suite", directory=tmp_path, group="sweep", tags=["nightly"])
    assert [row.as_dict(), failed.as_dict()] == before
    assert all(run.is_relative_to(tmp_path) for run in runs)
    by_id = {found["run_id"]: found for found in map(inspect, runs)}
    assert by_id.keys() == {row.cell.key[:16], failed.cell.key[:16]}

    seen = by_id[row.cell.key[:16]]
    assert (seen["project"], seen["name"], seen["state"]) == ("suite", "resnet18/jpeg/pgd", "finished")
    assert set(seen["tags"]) == {"shapes", "white_box", "linf 8/255", "ok", "nightly"}
    for name, value in row.metrics.items():
        assert seen["summary"][name] == value["value"]
        assert seen["summary"][f"{name}/low"] == value["low"]
        assert seen["summary"][f"{name}/n"] == value["n"]
    assert seen["summary"]["forwards_per_sample"] == 20
    assert seen["summary"]["seconds"] == 1.5
    assert seen["summary"]["flags"] == "nan"
    assert seen["config"]["attack"] == row.cell.attack
    assert seen["config"]["threat"] == row.cell.threat
    assert seen["config"]["key"] == row.cell.key
    assert by_id[failed.cell.key[:16]]["state"] == "failed"

    everything = b"".join(f.read_bytes() for run in runs for f in run.rglob("*") if f.is_file())
    assert b"secret-host" not in everything  # the row's own environment
    assert socket.gethostname().encode() not in everything or len(socket.gethostname()) < 4
    assert str(Path.home()).encode() not in everything or str(Path.home()) == "/"


def test_rows_without_a_defense_and_repeated_ones(tmp_path: Path) -> None:
    row = repaired("anp", "badnets", ca=0.9, asr=0.1)
    runs = mirror([row, row], project="suite", directory=tmp_path)
    assert len(runs) == 1
    seen = inspect(runs[0])
    assert seen["name"] == "resnet/anp/badnets"
    assert seen["summary"]["fidelity"] == pytest.approx(0.9)
    assert os.environ.get("WANDB_DISABLE_CODE") is None  # put back


@pytest.mark.parametrize("place", ["init", "summary"])
def test_a_failing_wandb_is_one_warning(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    class Run:
        dir = str(tmp_path / "run" / "files")

        @property
        def summary(self) -> Any:
            raise RuntimeError("disk full")

        def finish(self, exit_code: int) -> None:
            calls.append("finished")

    def init(**kwargs: Any) -> Run:
        calls.append("init")
        if place == "init":
            raise wandb.errors.CommError("no server")
        return Run()

    monkeypatch.setattr(wandb, "init", init)
    results = [attacked("pgd", 100), attacked("fgsm", 120)]
    before = copy.deepcopy([r.as_dict() for r in results])
    assert mirror(results, project="suite", directory=tmp_path) == []
    assert [r.as_dict() for r in results] == before
    assert calls == (["init"] if place == "init" else ["init", "finished"])  # it stops at the first failure
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert ("no server" if place == "init" else "disk full") in said[0]


def test_online_without_a_key_stays_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    modes = []
    monkeypatch.setattr(wandb, "init", lambda **kwargs: modes.append(kwargs["mode"]) or wandb.no_such_thing)
    monkeypatch.setattr(wandb_mirror.Path, "home", lambda: tmp_path)
    mirror([attacked("pgd", 100)], project="suite", mode="online", directory=tmp_path)
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    mirror([attacked("pgd", 100)], project="suite", mode="online", directory=tmp_path)
    assert modes == ["offline", "online"]
    assert "no API key" in capsys.readouterr().err


def test_modes_and_a_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"'ofline'.*offline, online, disabled"):
        mirror([], project="suite", mode="ofline")  # type: ignore[arg-type]
    assert mirror([attacked("pgd", 100)], project="suite", mode="disabled", directory=tmp_path) == []
    assert not list(tmp_path.iterdir())
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtra, match=r"pip install 'siegebench\[wandb\]'"):
        mirror([attacked("pgd", 100)], project="suite", directory=tmp_path)
