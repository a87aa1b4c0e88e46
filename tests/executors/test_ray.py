"""Ray on a cluster of two nodes on this machine: a worker and a node die, workers without the driver's file system."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from siegebench import api
from siegebench.cells import digest
from siegebench.config import load_suite
from siegebench.errors import ConfigError
from siegebench.executors import RayExecutor, executor
from siegebench.executors import ray as module
from siegebench.store import Store
from siegebench.workspace import Settings
from tests import runs

ray = pytest.importorskip("ray", reason="no Ray: the extra `ray`")
TOLD = (
    "environment",
    "env",
    "timing",
    "attempts",
    "errors",
    "sources",
    "given",
)  # how a row was made, not what it says


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    patch, folder = pytest.MonkeyPatch(), tmp_path_factory.mktemp("site")
    patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(runs.ROOT), os.environ.get("PYTHONPATH", "")]))
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    with runs.known(folder, patch):
        yield folder


@pytest.fixture(scope="module")
def cluster(site: Path) -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.second = made.add_node(num_cpus=1)
    yield made
    ray.shutdown()
    made.shutdown()


def rows(store: Path) -> dict[str, dict[str, Any]]:
    """What the rows say, by key; each file is one row."""
    found = list(Store(store).rows())
    out = {row.cell.key: {k: v for k, v in row.as_dict().items() if k not in TOLD} for row in found}
    assert len(found) == len(out), "no row is there twice"
    return out


@pytest.fixture(scope="module")
def serial(site: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A suite in which one worker dies and one cell is slow, and its store after a serial run without either."""
    folder = tmp_path_factory.mktemp("serial")
    log = folder / "log"
    slow = {"name": "outsider/step", "tag": "slow", "seconds": 6.0, "log": str(log)}
    once = {"name": "outsider/step", "tag": "once", "ends": "dies once", "log": str(log)}
    log.write_text("once\n")  # in the serial run it has died already
    file = runs.suite(folder / "s.yaml", runs.board(attacks=["fgsm", {"name": "pgd", "steps": 5}, once, slow]))
    settings = Settings(root=str(folder / "store"), threads=1, save_images=2)
    assert api.run(load_suite(str(file)), settings).ended == {"ok": 5}
    log.unlink()
    return file, folder / "store"


def test_rows_survive_a_worker_and_a_node_and_equal_the_serial_ones(
    cluster: Any, serial: tuple[Path, Path], tmp_path: Path
) -> None:
    file, expected = serial
    store = runs.with_artifacts(expected, tmp_path / "store")
    log = file.parent / "log"
    removed = threading.Event()

    def lose_a_node() -> None:
        while not (log.exists() and "slow" in log.read_text()):
            time.sleep(0.1)
        cluster.remove_node(cluster.second, allow_graceful=False)
        removed.set()

    threading.Thread(target=lose_a_node, daemon=True).start()
    engine = RayExecutor(slots=2, address=cluster.address)
    outcome = api.run(load_suite(str(file)), Settings(root=str(store), threads=1, save_images=2), how=engine)
    assert removed.wait(10)
    assert outcome.ended == {"ok": 5}
    assert rows(store) == rows(expected)
    assert log.read_text().split().count("once") == 2
    assert not list(store.glob(".worker-*"))


def test_a_worker_with_another_file_system_sends_its_rows(
    cluster: Any, serial: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, expected = serial
    monkeypatch.setattr(module._Actors, "__enter__", lambda self: self)  # the file that workers look for is not there
    own = Path(tempfile.gettempdir()) / f"siegebench-{digest(str(tmp_path / 'store'))[:12]}"
    runs.with_artifacts(expected, own)
    try:
        settings = Settings(root=str(tmp_path / "store"), threads=1, save_images=2)
        engine = RayExecutor(slots=1, address=cluster.address)
        assert api.run(load_suite(str(file)), settings, how=engine).ended == {"ok": 5}
        assert rows(tmp_path / "store") == rows(expected)
        names = {str(p.relative_to(expected / "rows")) for p in (expected / "rows").rglob("*") if p.is_file()}
        assert {
            str(p.relative_to(tmp_path / "store/rows")) for p in (tmp_path / "store/rows").rglob("*") if p.is_file()
        } == names
        assert not (tmp_path / "store" / "artifacts").exists()
    finally:
        shutil.rmtree(own, ignore_errors=True)


def test_what_the_cluster_has_no_room_for_is_refused_in_one_line(
    cluster: Any, serial: tuple[Path, Path], tmp_path: Path
) -> None:
    engine = RayExecutor(address=cluster.address, gpus=0.5)
    with pytest.raises(ConfigError, match=r"0 GPUs; a worker needs 1 CPUs and 0.5 GPUs: lower --threads or --gpus"):
        api.run(load_suite(str(serial[0])), Settings(root=str(tmp_path)), how=engine)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"name": "rai"}, "unknown executor 'rai'. Did you mean ray"),
        ({"name": "local", "address": "auto"}, "an address and a share of GPUs are for executor ray, found 'local'"),
        ({"name": "serial", "limit": 5.0}, "expected seconds above 0 and executor local or ray; found 'serial'"),
        ({"name": "ray", "limit": -1.0}, "limit -1: expected seconds above 0"),
    ],
)
def test_options_that_do_not_fit_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        executor(**given)
