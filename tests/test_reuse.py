"""Rows and weights made by other code of their entries are not used; replaced rows stay in the history."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from siegebench import api, registry, sources
from siegebench.cells import Cell
from siegebench.config import load_suite
from siegebench.errors import ConfigError
from siegebench.plan import plan
from siegebench.store import Store
from siegebench.workspace import Settings
from tests import runs
from tests.test_store import cell, result

ENTRY = """
from siegebench.types import Attack
from . import _helper

class Mine(Attack):
    '''A docstring.'''

    def run(self):
        return _helper.half(2)  # a comment
"""
CARD = "name: {0}\nkind: attack\nentry: {0}:Mine\nversion: 1\nsummary: An attack that is never run.\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package with one attack and one helper, whose entry nobody imports."""
    package = tmp_path / "planted_cards"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "_helper.py").write_text("def half(x):\n    return x / 2\n")
    (package / "mine.py").write_text(ENTRY)
    (package / "mine.yaml").write_text(CARD.format("mine"))
    info = tmp_path / "planted-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: planted\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[siegebench.cards]\nplanted = planted_cards\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    runs.forget()
    yield package
    monkeypatch.undo()
    runs.forget()


MINE = {"name": "planted/mine", "version": 1}
NESTED = {"name": "eot", "version": 1, "looks": 20, "attack": MINE}


def now(**slots: Any) -> dict[str, str]:
    sources.forget()
    return sources.of_slots(slots or {"attack": MINE})


def test_the_hash_covers_the_code_and_what_it_imports_of_entries(folder: Path) -> None:
    before, nested = now(), now(attack=NESTED)
    assert set(before) == {"attack"}
    assert before != nested
    path = folder / "mine.py"
    path.write_text(
        "# a comment\n" + ENTRY.replace("A docstring.", "Another.\n\n    Longer.").replace("  # a comment", "")
    )
    assert now() == before, "comments and docstrings count"
    path.write_text(ENTRY.replace("half(2)", "half(3)"))
    assert now() != before
    assert now(attack=NESTED) != nested, "the source of a nested entry does not count"
    path.write_text(ENTRY)
    (folder / "_helper.py").write_text("def half(x):\n    return x / 3\n")
    assert now() != before, "the source of a helper does not count"


def test_every_slot_has_a_hash_and_models_from_python_have_none(folder: Path) -> None:
    of = sources.of(cell(attack=MINE, defense={"name": "jpeg", "version": 1}, model={"name": "cifar_resnet20"}))
    assert set(of) == {"attack", "defense", "model", "data"}
    assert all(len(value) == sources.LENGTH for value in of.values())
    assert len(set(of.values())) == len(of)
    given = sources.of(cell(model={"name": "cifar_resnet20", "version": 1, "answers": "0"}))
    assert set(given) == {"attack", "data"}
    assert set(sources.of(cell(surrogates=[{"name": "cifar_resnet20"}], attack=None))) == {"data", "surrogates"}
    assert sources.of_slots({"attack": {"name": "of_nobody", "version": 1}}) == {}


def test_relative_and_full_imports_of_own_entries_are_followed() -> None:
    _, files = sources._entry("siegebench.defenses", runs.ROOT / "defenses", "bit_depth")
    assert {path.name for path in files} >= {"bit_depth.py", "_wrapped.py"}
    assert not [path for path in files if path.parent.name == "siegebench"], "the harness is not part of an entry"


def test_a_row_is_stale_if_a_hash_differs_and_not_if_it_has_none(folder: Path, tmp_path: Path) -> None:
    mine = cell(attack=MINE)
    row = result(mine, sources=sources.of(mine))
    assert sources.changed(row.cell, row.sources) == []
    store = Store(tmp_path / "store")
    store.put(row)
    (got,) = store.rows()
    assert got.sources == row.sources
    (folder / "mine.py").write_text(ENTRY.replace("half(2)", "half(3)"))
    sources.forget()
    assert sources.changed(got.cell, got.sources) == ["attack planted/mine"]
    assert sources.changed(mine, {}) == [], "a row of an earlier version cannot be judged"


def test_a_process_that_loaded_older_code_is_told_to_start_again(folder: Path) -> None:
    mine = cell(attack=MINE)
    sources.of(mine)
    sources.check_loaded([mine])
    (folder / "mine.py").write_text(ENTRY + "# a comment\n")
    sources.check_loaded([mine])
    (folder / "mine.py").write_text(ENTRY.replace("half(2)", "half(3)"))
    with pytest.raises(ConfigError, match=r"mine\.py: edited after this Python process loaded it; restart Python"):
        sources.check_loaded([mine])


# -------------------------------------------------------------------------------------------------------------- history


def test_a_row_that_is_replaced_moves_to_the_history(tmp_path: Path) -> None:
    store = Store(tmp_path)
    ended = {"started": "2026-01-31T12:00:00+00:00", "ended": "2026-01-31T12:00:01+00:00"}
    first = result(timing=ended, arrays={"ids": [1, 2]})
    path = store.put(first)
    before = path.read_bytes()
    store.put(first)
    assert not (tmp_path / "history").exists(), "the same row again is no other row"
    for seconds in (2.5, 3.5):
        store.put(result(timing={**ended, "seconds": seconds}))
    old = sorted((tmp_path / "history").rglob("*.json"))
    assert [p.name for p in old] == [f"{path.stem}.20260131120001-1.json", f"{path.stem}.20260131120001.json"]
    assert old[1].read_bytes() == before
    assert old[1].with_suffix(".npz").exists()
    assert [r.timing["seconds"] for r in store.rows()] == [3.5], "the history is no part of the rows"
    failed = result(cell(seed=1), status="error", error={"type": "E", "message": "x"})
    store.put(failed)
    store.put(result(cell(seed=1)))
    assert len(list((tmp_path / "history").rglob("*.json"))) == 2, "an error stays in the errors of the next row"


# ----------------------------------------------------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """(a suite, a store with its rows and its trained model)"""
    root = tmp_path_factory.mktemp("finished")
    patch = pytest.MonkeyPatch()
    with runs.known(root / "site", patch):
        file = runs.suite(root / "s.yaml")
        api.run(str(file), Settings(root=str(root / "store"), threads=1))
        yield file, root / "store"


@pytest.fixture
def store(finished: tuple[Path, Path], tmp_path: Path) -> Path:
    shutil.copytree(finished[1], tmp_path / "store")
    return tmp_path / "store"


def age(store: Path, slot: str) -> int:
    """Make rows and weights look as if older code of a slot's entry had made them; returns how many rows have it."""
    files = [p for p in store.rglob("*.json") if p.with_suffix(".safetensors").exists() or "rows" in p.parts]
    changed = [p for p in files if slot in json.loads(p.read_text())["sources"]]
    for path in changed:
        row = json.loads(path.read_text())
        row["sources"][slot] = "0" * sources.LENGTH
        path.write_text(json.dumps(row))
    return sum("rows" in p.parts for p in changed)


def go(file: Path, store: Path, again: bool = False, **settings: Any) -> api.Outcome:
    return api.run(str(file), Settings(root=str(store), threads=1, **settings), again=again)


def test_stale_rows_are_computed_again_and_only_they(finished: tuple[Path, Path], store: Path) -> None:
    file, before = finished[0], runs.numbers(store)
    assert age(store, "attack") == 1
    kept = go(file, store, keep_stale=True)
    assert kept.ended == {"cached": 2}
    outcome = go(file, store)
    assert outcome.ended == {"ok": 1, "cached": 1}
    assert outcome.why == {"stale": 1}
    assert outcome.store == str(store)
    assert runs.numbers(store) == before
    assert len(list((store / "history").rglob("*.json"))) == 1
    assert go(file, store).ended == {"cached": 2}


def test_weights_that_other_code_has_trained_are_trained_again(finished: tuple[Path, Path], store: Path) -> None:
    file, before = finished[0], runs.numbers(store)
    (weights,) = (store / "artifacts").glob("*.safetensors")
    good = weights.read_bytes()
    description = json.loads(weights.with_suffix(".json").read_text())
    assert set(description["sources"]) == {"model"}
    assert age(store, "model") == 2
    weights.write_bytes(good[:-4] + b"\0\0\0\0")  # other weights, as the older code made them
    outcome = go(file, store)
    assert outcome.why == {"stale": 2}
    assert outcome.results[0].timing["training"] + outcome.results[1].timing["training"] > 0
    assert weights.read_bytes() == good
    assert runs.numbers(store) == before


def test_everything_is_computed_again_when_asked(finished: tuple[Path, Path], store: Path) -> None:
    file, before = finished[0], runs.numbers(store)
    outcome = go(file, store, again=True)
    assert outcome.ended == {"ok": 2}
    assert outcome.why == {"again": 2}
    assert sum(r.timing["training"] for r in outcome.results) == 0, "trained weights are used again"
    assert runs.numbers(store) == before
    assert len(list((store / "history").rglob("*.json"))) == 2


def test_the_command_says_what_is_stale(finished: tuple[Path, Path], store: Path, call: runs.Call) -> None:
    file = finished[0]
    age(store, "attack")
    _, out, _ = call("run", file, "--store", store, "--dry-run")
    assert "stale   white_box: " in out
    assert "2 cells, 1 to compute, 1 stored rows are stale" in out
    _, _, err = call("run", file, "--store", store, "--executor", "serial", "--threads", 1, "--save-images")
    assert "1 stored rows were made by other code of attack fgsm: computed again (--keep-stale keeps them)" in err
    assert "2 cells: 1 computed, 1 stored before" in err
    assert len(list(store.rglob("fgsm-*.images.safetensors"))) == 1
    assert list(store.rglob("fgsm-*.images/*.png"))


def test_plans_have_cells_whose_sources_are_known(finished: tuple[Path, Path]) -> None:
    cells: list[Cell] = plan(load_suite(str(finished[0]))).cells
    assert {slot for c in cells for slot in sources.of(c)} == {"attack", "measure", "model", "defense", "data"}
    assert registry.names("attack")
