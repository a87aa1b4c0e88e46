"""Fixtures of the tests of submissions: a good one, a copy of it, and the command."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from siegebench import api, cli
from siegebench.workspace import Settings
from tests import runs

Command = Callable[..., tuple[int, str, str]]
NEW = (
    "submit", "new", "pgd", "--who", "Ann Example", "--licence", "MIT", "--method", "Projected gradient descent.",
    "--paper", "https://arxiv.org/abs/1706.06083", "--file", "small.yaml",
)  # fmt: skip
ONE = Path("submissions/white_box/pgd")


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
