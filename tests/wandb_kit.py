"""What tests of W&B share: no network but 127.0.0.1, and runs as wandb's own reader sees them."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from siegebench.leaderboard import rank
from siegebench.leaderboard.board import Board

from siegebench.cells import Result
from siegebench.records import Record
from tests import rows as make

HERE = ("127.0.0.1", "::1", "localhost")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """No login and no mode of the caller; this process reaches nothing but this machine."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_DATA_DIR", "WANDB_ENTITY", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", os.devnull)
    plain = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in HERE:
            raise AssertionError(f"W&B reached for {address}")
        plain(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)


@cache
def _command() -> str | None:
    """The command `wandb`, if it can read runs."""
    command = shutil.which("wandb", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    able = command is not None and subprocess.run([command, "leet", "--help"], capture_output=True).returncode == 0
    return command if able else None


def _reader(run: Path, *options: str) -> str:
    command = _command()
    assert command is not None, "the extra asks for a wandb that can read runs, with `wandb leet inspect`"
    done = subprocess.run([command, "leet", "inspect", *options, "--json", str(run)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def inspect(run: Path) -> dict[str, Any]:
    """The run: config, summary, state, tags, ..."""
    found: dict[str, Any] = json.loads(_reader(run, "--summary"))
    return found


def records(run: Path) -> list[dict[str, Any]]:
    """Everything that was recorded, in order; `type` says what it is and where its content stands."""
    return [json.loads(line) for line in _reader(run).splitlines()]


def of(kind: str, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records of a kind, such as `artifact`, `history`, `run`, `exit`."""
    return [record[kind] for record in found if record["type"] == kind]


def table(run: Path, seen: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The rows of a table of an offline run, read from the file that the summary names."""
    about = seen["summary"][name]
    found = json.loads((run / "files" / about["path"]).read_text(encoding="utf-8"))
    return [dict(zip(found["columns"], row, strict=True)) for row in found["data"]]


def suite(rows: Sequence[Result], name: str = "every", **more: Any) -> tuple[Record, list[Board], list[Result]]:
    """A record of the rows, their boards, and the rows."""
    record = Record(suite=name, id="0123456789abcdef", cells=[row.cell.key for row in rows], **more)
    with make.controls(*make.PLANTED):
        return record, rank.boards(rows), list(rows)


def over_budgets() -> list[Result]:
    """Two entries of one model under AutoAttack at two budgets."""
    return [
        make.attacked("autoattack", right, defense=defense, threat={**make.LINF, "eps": eps / 255})
        for eps, strength in ((4, 60), (8, 20))
        for defense, right in (("none", strength), ("jpeg", strength + 30))
    ]
