"""Settings of all tests: no network, one thread a process."""

from __future__ import annotations

import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest
import torch

from siegebench.classifier import Classifier
from tests import kit, runs

torch.set_num_threads(1)


@pytest.fixture
def linear() -> Classifier:
    return kit.linear_model()


@pytest.fixture
def cnn() -> Classifier:
    return kit.cnn_model()


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> runs.Call:
    """The command in this process and in an empty folder: (exit code, stdout, stderr)."""
    from siegebench import cli

    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["siegebench", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return int(left.value.code or 0), out, err

    return run


@pytest.fixture(scope="session", autouse=True)
def common(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of pytest-xdist have in common; each has a folder of its own below it."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "common"
    folder.mkdir(exist_ok=True)
    kit.share(folder)
    return folder


@pytest.fixture(scope="session")
def real_store(tmp_path_factory: pytest.TempPathFactory, common: Path) -> Path:
    """The store of a tiny run of every track, made once for all processes of pytest-xdist; only for reading."""
    from siegebench import api
    from siegebench.workspace import Settings

    own, store = tmp_path_factory.mktemp("real"), common / "store"
    patch = pytest.MonkeyPatch()
    with runs.known(own / "site", patch):
        suite = runs.suite(own / "every.yaml", *runs.every_track(), data={"set": "digits", "count": 20})
        outcome = api.run(str(suite), Settings(root=str(store), threads=1, device="cpu"))
    assert not outcome.failed, [r.error for r in outcome.results if r.error]
    return store
