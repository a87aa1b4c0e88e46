"""Every registered entry keeps its contract, and every clause of the contract catches an entry that breaks it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from siegebench import registry
from siegebench.data import ImageSet
from siegebench.errors import ConfigError
from siegebench.testing import CLAUSES, Check, check_entry, check_instance
from siegebench.testing.specimens import images, planted_set, victim
from siegebench.threat import ThreatModel
from siegebench.types import BackdoorAttack
from tests.broken import (
    attacks,
    backdoors,
    camouflages,
    certifiers,
    corruptions,
    defenses,
    detectors,
    leaks,
    measures,
    object_detectors,
    sharings,
    sources,
    studies,
    thefts,
)
from tests.broken.attacks import FGSM, Descends

REGISTERED = [(kind, name) for kind, name in registry.cards() if "/" not in name]


NEEDS_NOTHING = ("attack", "measure", "defense", "backdoor", "detector", "theft", "leak", "sharing")
NEEDS_A_FILE = ("saved", "picture", "generative_variation", "syntactic")
OF_TRIGGERS = 5  # clauses that a poisoning without a trigger does not have


def faults(checks: list[Check]) -> list[str]:
    return [f"{c.name}: {c.detail}" for c in checks if not c.passed]


@pytest.mark.parametrize(("kind", "name"), REGISTERED, ids=[f"{k}-{n}" for k, n in REGISTERED])
def test_registered_entry_keeps_its_contract(kind: str, name: str) -> None:
    checks = check_entry(name, kind)
    assert not faults(checks)
    if kind in NEEDS_NOTHING and name not in NEEDS_A_FILE:  # no file and no download: every clause can be tried
        untried = [c.name for c in checks if "not checked" in c.name]
        without = kind == "backdoor" and not issubclass(registry.entry_class(kind, name), BackdoorAttack)
        assert len(untried) <= (OF_TRIGGERS if without else 0), untried


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def test_parquet_files_of_ones_own(tmp_path: Path) -> None:
    for split, first in (("train", 0), ("test", 100)):
        rows = {"image": [{"bytes": png(first + i), "path": None} for i in range(6)], "label": [0, 1, 2, 0, 1, 2]}
        pq.write_table(pa.table(rows), tmp_path / f"mine-{split}-00000-of-00001.parquet")
    checks = check_entry({"name": "parquet", "folder": str(tmp_path), "prefix": "mine", "num_classes": 3}, "dataset")
    assert len(checks) >= 4
    assert not faults(checks)
    assert not [c.name for c in checks if "not checked" in c.name]


def test_image_folder_of_ones_own(tmp_path: Path) -> None:
    for i, split in enumerate(("train", "test")):
        for j, label in enumerate(("cat", "dog")):
            (tmp_path / split / label).mkdir(parents=True)
            for k in range(2):
                (tmp_path / split / label / f"{k}.png").write_bytes(png(100 * i + 10 * j + k))
    checks = check_entry({"name": "image_folder", "folder": str(tmp_path)}, "dataset")
    assert len(checks) >= 4
    assert not faults(checks)
    assert not [c.name for c in checks if "not checked" in c.name]


def test_stored_images_of_ones_own(tmp_path: Path) -> None:
    _, x, y = victim()
    point = x.clone()
    point[:, :, 0, 0] += torch.where(x[:, :, 0, 0] < 0.5, 0.005, -0.005)  # within the eps of every norm
    save_file({"images": point.float(), "ids": torch.arange(len(x)), "labels": y}, tmp_path / "mine.safetensors")
    checks = check_entry({"name": "saved", "file": str(tmp_path / "mine.safetensors")}, "attack")
    assert len(checks) >= 10
    assert not faults(checks)
    assert not [c.name for c in checks if "not checked" in c.name]


# Without the checkpoint the network is trained, so that this needs no file
WITH_CHECKPOINT = [
    name for name in registry.names("model") if isinstance(registry.find("model", name)[1].get("checkpoint"), str)
]


@pytest.mark.parametrize("name", WITH_CHECKPOINT)
def test_model_without_its_checkpoint(name: str) -> None:
    checks = check_entry({"name": name, "checkpoint": None}, "model")
    assert len(checks) >= 5
    assert not faults(checks)


KINDS = (
    attacks,
    measures,
    defenses,
    backdoors,
    detectors,
    corruptions,
    camouflages,
    certifiers,
    leaks,
    sharings,
    object_detectors,
    sources,
    studies,
    thefts,
)


HONEST = [case for kind in KINDS for case in kind.HONEST]


@pytest.mark.parametrize(("kind", "entry"), HONEST, ids=[type(e).__name__ for _, e in HONEST])
def test_honest_entry_passes(kind: str, entry: Any) -> None:
    checks = check_instance(kind, entry)
    assert not faults(checks)
    assert len(checks) == len(CLAUSES[kind])
    assert not [c.name for c in checks if "not checked" in c.name]


BROKEN = [case for kind in KINDS for case in kind.BROKEN]


@pytest.mark.parametrize(
    ("kind", "entry", "clause", "message"),
    BROKEN,
    ids=[f"{type(e).__name__}-{e.wrong}" if hasattr(e, "wrong") else type(e).__name__ for _, e, _, _ in BROKEN],
)
def test_broken_entry_is_caught_by_its_clause(kind: str, entry: Any, clause: str, message: str) -> None:
    broken = {c.name: c.detail for c in check_instance(kind, entry) if not c.passed}
    assert clause in broken, f"not caught; faults: {broken}"
    assert message in broken[clause]


def test_every_clause_is_shown_to_catch_something() -> None:
    shown = {(kind, clause) for kind, _, clause, _ in BROKEN}
    assert shown == {(kind, c.__name__.replace("_", " ")) for kind, clauses in CLAUSES.items() for c in clauses}


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean pgd"):
        check_entry("pdg")
    with pytest.raises(ConfigError, match=r"no parameter 'stepz'\. Did you mean step"):
        check_entry({"name": "pgd", "stepz": 3})
    with pytest.raises(ConfigError, match=r"unknown kind 'atack'\. Did you mean attack"):
        check_instance("atack", FGSM())


def test_a_control_need_not_succeed() -> None:
    assert not faults(check_instance("attack", Descends(), control=True))


def test_a_preset_and_a_family_member_are_checked_as_such() -> None:
    assert not faults(check_entry("pgd.margin"))
    names = [c.name for c in check_entry("badnets.white")]
    assert "is rebuilt from its description" in names


def test_images_and_planted_set_do_not_change() -> None:
    # the numbers in the clauses (eps at which some images fall) rest on them
    assert torch.equal(images(4), images(6)[:4])
    assert isinstance(planted_set(), ImageSet)
    assert planted_set().digest == planted_set().digest
    assert ThreatModel(norm="linf", eps=0.1).size(images(2)[:1], images(2)[1:]).item() == 1.0
