"""The store: whole files or none, rows that come back as they went in, damage noticed, locks that die with an owner."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from siegebench.cells import Cell, Result, pack, rate
from siegebench.errors import ConfigError
from siegebench.files import write_atomic
from siegebench.store import Store
from tests import runs


def cell(**changes: Any) -> Cell:
    threat = {"norm": "linf", "eps": 8 / 255, "access": "gradient", "queries": None}
    return Cell(
        **{
            "track": "white_box",
            "data": {
                "name": "digits",
                "source": {"name": "digits", "version": 1},
                "digest": "d" * 64,
                "count": 10,
                "classes": 10,
                "split": "test",
            },
            "model": {"name": "outsider/tiny", "version": 1},
            "attack": {"name": "pgd", "version": 1, "steps": 3},
            "threat": threat,
            **changes,
        }
    )


def result(of: Cell | None = None, **changes: Any) -> Result:
    outcome = np.array([1, 0, 1, 1, 0, 1, 0, 0, 1, 1], dtype=bool)
    return Result(
        cell=of or cell(),
        **{
            "metrics": {"robust_acc": rate(6, 10), "median_distance": {"value": 0.1 + 0.2}},
            "samples": {"n": 10, "robust": pack(outcome)},
            "counts": {"forwards": 123456789012, "forwards_per_sample": np.float32(1 / 3)},
            "weights": "a" * 64,
            **changes,
        },
    )


# ------------------------------------------------------------------------------------------------------ whole or none


def test_a_file_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder" / "row.json"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in path.parent.iterdir()] == ["row.json"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "row.json"
    write_atomic(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["row.json"]


WRITER = """
    import hashlib, json, os, random, signal, sys, time
    from pathlib import Path
    from siegebench.files import write_atomic

    path, kills = Path(sys.argv[1]), int(sys.argv[2])
    chance, version, torn, lost = random.Random(7), 0, 0, 0
    for kill in range(kills):
        said, tell = os.pipe()
        child = os.fork()
        if child == 0:
            while True:
                version += 1
                body = str(version) * chance.randint(1000, 300_000)
                row = {"version": version, "sum": hashlib.sha256(body.encode()).hexdigest(), "body": body}
                write_atomic(path, json.dumps(row).encode())
                os.write(tell, version.to_bytes(8, "big"))  # from now on the version must never be lost
        os.close(tell)
        written = os.read(said, 8) if kill % 2 else b""  # on a busy machine the others may not come to write
        time.sleep(chance.uniform(0.005, 0.12))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        acknowledged = int.from_bytes(written, "big") or version
        while word := os.read(said, 8):
            acknowledged = int.from_bytes(word, "big")
        os.close(said)
        if path.exists():
            try:
                row = json.loads(path.read_bytes())
                torn += hashlib.sha256(row["body"].encode()).hexdigest() != row["sum"]
                lost += row["version"] < acknowledged
                version = row["version"]
            except ValueError:
                torn += 1
        else:
            lost += acknowledged > 0
        chance.random()
    print(json.dumps({"torn": torn, "lost": lost, "version": version}))
"""


def test_kill_9_in_the_middle_of_writing_tears_and_loses_nothing(tmp_path: Path) -> None:
    """25 processes that write one file again and again, each killed at a random moment."""
    path = tmp_path / "rows" / "row.json"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(WRITER), str(path), "25"],
        env=runs.environment(tmp_path / "site"), capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["torn"] == found["lost"] == 0
    assert found["version"] >= 12, "the writers hardly wrote"


def test_what_killed_writers_leave_behind_goes_with_the_next_write(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = store.put(result(arrays={"ids": np.arange(3)}))
    mine = [path.parent / f".{path.name}.0badcafe.tmp", path.parent / f".{path.stem}.npz.12345678.tmp"]
    other = path.parent / ".pgd-ffffffffffffffff.json.0badcafe.tmp"  # its writer may be alive
    for file in (*mine, other):
        file.write_bytes(b"{")
    assert len(list(store.rows())) == 1
    store.put(result())
    assert not any(file.exists() for file in mine)
    assert other.exists()


# ---------------------------------------------------------------------------------------------------------------- rows


def test_a_row_comes_back_as_it_went_in(tmp_path: Path) -> None:
    store = Store(tmp_path)
    sent = result(env={"device": "Grafik ✓"}, timing={"seconds": 1.5}, attempts=3)
    path = store.put(sent)
    got = store.get(sent.cell)
    assert got is not None
    assert got.cell == sent.cell
    assert got.cell.threat is not None
    assert got.cell.threat["eps"] == 8 / 255, "what decides the key must not be rounded"
    assert got.cell.key == sent.cell.key
    assert (got.status, got.attempts, got.weights, got.env) == ("ok", 3, "a" * 64, {"device": "Grafik ✓"})
    assert got.metrics["robust_acc"] == sent.metrics["robust_acc"]
    assert got.value("median_distance") == 0.3
    assert got.counts["forwards"] == 123456789012
    assert got.counts["forwards_per_sample"] == pytest.approx(1 / 3, abs=1e-6)
    assert got.outcome("robust").tolist() == [True, False, True, True, False, True, False, False, True, True]
    assert store.finished(sent.cell)
    assert list(store.rows()) == [got]
    assert path.read_bytes().endswith(b"}\n")
    before = path.read_bytes()
    store.put(got)
    assert path.read_bytes() == before, "reading and writing a row changes it"


def test_numbers_of_samples_lie_beside_the_row(tmp_path: Path) -> None:
    store = Store(tmp_path)
    distance = np.random.default_rng(0).random(1000)
    sent = result(arrays={"distance": distance, "ids": np.arange(1000)})
    store.put(sent)
    got = store.arrays(sent.cell)
    assert np.array_equal(got["distance"], distance)
    assert got["ids"].dtype == np.int64
    assert store.arrays(cell(seed=1)) == {}


def test_numbers_that_are_none_become_null(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = store.put(result(metrics={"asr": {"value": float("nan")}, "lift": {"value": float("inf")}}))
    text = path.read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    got = store.get(cell())
    assert got is not None
    assert got.value("asr") is None


def test_cells_have_files_of_their_own(tmp_path: Path) -> None:
    store = Store(tmp_path)
    cells = [
        cell(),
        cell(seed=1),
        cell(attack={"name": "pgd", "version": 1, "steps": 4}),
        cell(attack={"name": "eot", "version": 1, "attack": {"name": "pgd", "version": 1, "steps": 3}}),
        cell(model={"name": "../../../etc/passwd", "version": 1}),
        cell(model={"name": "timm/" + "x" * 300, "version": 1}),
        cell(data={**cell().data, "name": "..", "digest": "e" * 64}),
        cell(threat=None, attack=None, track="backdoor", backdoor={"name": "bad/nets", "version": 1}),
    ]
    paths = [store.put(result(c)) for c in cells]
    assert len(set(paths)) == len(cells)
    for path in paths:
        assert path.resolve().is_relative_to((tmp_path / "rows").resolve())
        assert len(path.name) < 120
    assert {r.cell.key for r in store.rows()} == {c.key for c in cells}


def test_an_error_is_no_finished_row(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put(result(status="error", error={"type": "RuntimeError", "message": "x"}))
    assert store.get(cell()) is not None
    assert not store.finished(cell())
    store.put(result(status="not_applicable"))
    assert store.finished(cell())


def test_what_json_cannot_hold_is_refused_and_the_row_stays(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = store.put(result())
    before = path.read_bytes()
    with pytest.raises(TypeError):
        store.put(result(flags=[{"id": object()}]))  # type: ignore[dict-item]
    assert path.read_bytes() == before


def _spoilt(good: bytes) -> dict[str, bytes]:
    row = json.loads(good)
    other = {**row, "cell": {**row["cell"], "seed": 5}}
    return {
        "empty": b"",
        "half": good[: len(good) // 2],
        "list": b"[]",
        "null": b"null",
        "number": b"7",
        "binary": bytes(range(256)),
        "deep": b"[" * 100_000,
        "other key": json.dumps(other).encode(),
        "other schema": json.dumps({**row, "schema": 99}).encode(),
        "no cell": json.dumps({k: v for k, v in row.items() if k != "cell"}).encode(),
        "unknown slot": json.dumps({**row, "cell": {**row["cell"], "gadget": 1}}).encode(),
        "unknown status": json.dumps({**row, "status": "splendid"}).encode(),
        "metrics of text": json.dumps({**row, "metrics": "good"}).encode(),
        "zeros": b"\x00" * len(good),
    }


SPOILT = sorted(_spoilt(json.dumps(result().as_dict(), default=float).encode()))


@pytest.mark.parametrize("how", SPOILT)
def test_a_damaged_row_is_set_aside_and_named(how: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = store.put(result())
    bad = _spoilt(path.read_bytes())[how]
    path.write_bytes(bad)
    with pytest.raises(ConfigError, match=f"^{path}: .*; remove it and run again$") as error:
        list(store.rows())
    assert "\n" not in str(error.value)
    assert path.read_bytes() == bad, "reading must not touch it"
    assert store.get(cell()) is None
    assert not store.finished(cell())
    assert not path.exists()
    assert path.with_suffix(".corrupt").read_bytes() == bad, "the evidence is kept"
    store.put(result())
    assert store.finished(cell())


def test_a_row_in_the_wrong_place_is_not_believed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = store.put(result())
    other = cell(seed=1)
    store.path(other).parent.mkdir(parents=True, exist_ok=True)
    os.replace(path, store.path(other))
    assert store.get(other) is None


# --------------------------------------------------------------------------------------------------------------- locks


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    store, inside, most = Store(tmp_path), [], []

    def work() -> None:
        for _ in range(20):
            with Store(tmp_path).lock("k" * 64) as mine:
                assert mine
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 80
    assert max(most) == 1
    with store.lock("k" * 64), store.lock("j" * 64, wait=False) as other:
        assert other, "another key is another lock"


HOLDER = """
    import sys, time
    from siegebench.store import Store
    with Store(sys.argv[1]).lock("k" * 64):
        print("held", flush=True)
        time.sleep(600)
"""


def test_a_lock_dies_with_its_owner(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER), str(tmp_path)],
        env=runs.environment(tmp_path / "site"), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    store = Store(tmp_path)
    with store.lock("k" * 64, wait=False) as mine:
        assert not mine
    holder.kill()
    holder.communicate()
    with store.lock("k" * 64) as mine:
        assert mine


def test_keys_do_not_depend_on_the_order_of_parameters() -> None:
    parameters = [("name", "pgd"), ("version", 1), ("steps", 3), ("loss", "ce")]
    keys = set()
    for seed in range(5):
        random.Random(seed).shuffle(parameters)
        keys.add(cell(attack=dict(parameters)).key)
    assert len(keys) == 1
