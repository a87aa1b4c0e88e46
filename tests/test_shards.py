"""Long cells leave finished images behind; a run that is killed goes on after them, to the same row."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from siegebench import shards
from siegebench.config import load_suite
from siegebench.executors.running import run_cell
from siegebench.plan import plan
from siegebench.settings import Settings
from siegebench.store import Store
from siegebench.types import Attack
from tests import runs


def numbers(at: slice) -> dict[str, Tensor]:
    return {"n": torch.arange(at.start, at.stop), "sq": torch.arange(at.start, at.stop).double() ** 2}


def every(parts: list[dict[str, Tensor]]) -> list[int]:
    return torch.cat([p["n"] for p in parts]).tolist()


@given(n=st.integers(1, 700), batch=st.integers(1, 300), died=st.integers(0, 700))
@settings(max_examples=25, deadline=None)
def test_what_an_earlier_run_left_is_not_computed_again(n: int, batch: int, died: int) -> None:
    asked: list[int] = []

    def part(at: slice) -> dict[str, Tensor]:
        if at.start <= died < at.stop and not asked.count(-1):
            asked.append(-1)
            raise KeyboardInterrupt
        asked.extend(range(at.start, at.stop))
        return numbers(at)

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "WORTH", -1.0)
        at = Path(folder) / "s"
        try:
            found = every(shards.by_parts(part, n, batch, at))
        except KeyboardInterrupt:
            done, asked[:] = max((i for i in asked), default=-1), [-1]
            found = every(shards.by_parts(part, n, batch, at))
            assert n <= batch or set(asked) == {-1, *range(done + 1, n)}
        assert found == list(range(n))


def test_parts_take_about_a_minute_and_torn_ones_are_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, sizes = [0.0], []
    monkeypatch.setattr(shards, "monotonic", lambda: now[0])

    def part(at: slice) -> dict[str, Tensor]:
        sizes.append(at.stop - at.start)
        now[0] += 3.0 * sizes[-1]  # three seconds an image
        return numbers(at)

    assert every(shards.by_parts(part, 150, 100, tmp_path)) == list(range(150))
    assert sizes == [64, 20, 20, 20, 20, 6]
    (tmp_path / "64-84.safetensors").write_bytes(b"torn")
    sizes.clear()
    assert every(shards.by_parts(part, 150, 100, tmp_path)) == list(range(150))
    assert sizes[0] == 64  # from image 64 on
    assert sum(sizes) == 150 - 64


def test_a_row_after_a_kill_equals_one_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "WORTH", -1.0)
    monkeypatch.setattr(shards, "FIRST", 8)
    with runs.known(tmp_path / "site", monkeypatch):
        suite = load_suite(str(runs.suite(tmp_path / "s.yaml", runs.board(measures=[]))))
        (cell,) = (c for c in plan(suite).cells if c.attack is not None)
        made = replace(Settings(threads=1, device="cpu", batch=4, save_images=0), suite=suite.origin)
        rows, calls = {}, []
        attack = Attack.__call__

        def counted(self: Attack, *args: object, **kwargs: object) -> object:
            calls.append(len(args[1]))
            if len(calls) == 3:
                raise KeyboardInterrupt
            return attack(self, *args, **kwargs)

        for name in ("whole", "killed"):
            own = replace(made, root=str(tmp_path / name))
            if name == "killed":
                monkeypatch.setattr(Attack, "__call__", counted)
                with pytest.raises(KeyboardInterrupt):
                    run_cell(cell, own)
                assert len(list((tmp_path / name / "shards").rglob("*.safetensors"))) == 2
            assert run_cell(cell, own) == "ok"
            rows[name] = Store(own.root).get(cell)
            assert not list((tmp_path / name / "shards").rglob("*"))
        assert rows["whole"].samples == rows["killed"].samples
        assert rows["whole"].metrics == rows["killed"].metrics
        assert rows["whole"].counts == rows["killed"].counts
        assert sum(calls[3:]) == rows["whole"].counts["attacked"] - sum(calls[:2])  # nothing twice
