"""Backdoor attacks that are designed against one defense or detector."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from siegebench.leaderboard import rank

from siegebench import api, registry
from siegebench.config import load_suite
from siegebench.kinds import KINDS
from siegebench.plan import plan
from siegebench.settings import Settings
from siegebench.types import BackdoorAttack
from tests import runs, victims

CLEANSE = {"name": "neural_cleanse", "steps": 3}


@pytest.mark.parametrize("kind", ["defense", "detector"])
def test_every_entry_names_backdoors_that_exist(kind: str) -> None:
    named = {
        name: [registry.build(BackdoorAttack, spec) for spec in registry.entry_class(kind, name).poisons]
        for name in registry.names(kind)
    }
    assert any(named.values())
    assert KINDS[kind].name == kind


def test_boards_run_them_against_their_entry_only(tmp_path: Path) -> None:
    backdoor = {"track": "backdoor", "backdoors": ["badnets"], "defenses": ["none", "nab"]}
    detection = {"track": "input_detection", "backdoors": ["badnets"], "detectors": ["strip", "scan", "badexpert"]}
    cells = plan(load_suite(str(runs.suite(tmp_path / "s.yaml", backdoor, detection, models=["byobnet_tiny"])))).cells
    knowing = {((c.defense or c.detector or {})["name"], (c.backdoor or {})["name"]) for c in cells if c.adaptive}
    assert knowing == {
        ("nab", "stamped_badnets"), ("strip", "tact"), ("scan", "adaptive_blend"), ("scan", "adaptive_patch"),
    }  # fmt: skip
    assert sum(not c.adaptive for c in cells) == 2 + 3


def test_boards_of_models_run_them_beside_their_population(tmp_path: Path) -> None:
    board = {"track": "model_detection", "backdoors": ["badnets"], "detectors": ["neural_cleanse", "mm_bd"], "clean": 2}
    known = (("neural_cleanse", "tact"), ("mm_bd", "badnets"))
    models = {"models": ["byobnet_tiny"], "seeds": [0, 1]}
    cells = plan(load_suite(str(runs.suite(tmp_path / "s.yaml", board, **models)))).cells
    knowing = {((c.detector or {})["name"], (c.backdoor or {})["name"], c.seed) for c in cells if c.adaptive}
    assert knowing == {(d, b, s) for d, b in known for s in (0, 1)}
    assert all(c.model["train_seed"] == c.seed for c in cells if c.adaptive)
    assert sum(not c.adaptive for c in cells) == 2 * 2 * (2 + 1)


def test_their_rows_say_whether_the_backdoor_was_learnt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = {"track": "model_detection", "backdoors": [{"name": "badnets", "side": 10}], "detectors": [CLEANSE]}
    with runs.known(tmp_path / "site", monkeypatch):
        suite = load_suite(str(runs.suite(tmp_path / "s.yaml", board)))
        rows = api.run(suite, Settings(root=str(tmp_path / "store"), threads=1, device="cpu")).results
    assert [r.status for r in rows] == ["ok"] * 3, [r.error for r in rows]
    told = {(r.cell.adaptive, (r.cell.backdoor or {}).get("name")): r.value("attack_success") for r in rows}
    assert told == {(False, None): None, (False, "badnets"): 1.0, (True, "tact"): told[True, "tact"]}
    assert told[True, "tact"] in (0.0, 1.0)
    shown = rank.boards(rows)[0]
    assert shown.facts["population"] == "1 clean, 1 backdoored"
    assert {r.cell.key for r in rows} == {*shown.lines[0].keys}


def test_a_poison_that_the_training_set_does_not_allow_is_left_out(tmp_path: Path) -> None:
    """TaCT needs covers of a third class; nobody has asked for it, so the suite is not refused."""
    x = torch.randint(0, 256, (60, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for split in ("train", "test"):
        for i, image in enumerate(x):
            file = tmp_path / "two" / split / "ab"[i % 2] / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(file)
    data = {"set": {"name": "image_folder", "folder": str(tmp_path / "two")}}
    board = {"track": "input_detection", "backdoors": ["badnets"], "detectors": ["strip", "sentinet"]}
    cells = plan(load_suite(str(runs.suite(tmp_path / "s.yaml", board, data=data, models=["byobnet_tiny"])))).cells
    assert {(c.backdoor or {})["name"] for c in cells if c.adaptive} == {"blended"}


def test_stamped_badnets_carries_the_stamp_in_training_only() -> None:
    attack = registry.build(BackdoorAttack, "stamped_badnets")
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    draws = victims.ONE[torch.zeros(4, dtype=torch.long)]
    tested, planted = attack.trigger(x, draws), attack.planted(x, torch.zeros(4, dtype=torch.long), draws)
    assert torch.equal(tested[:, :, :2, :2], x[:, :, :2, :2])
    assert planted[:, :, :2, :2].std(dim=(0, 2, 3)).max() == 0  # one colour
    torch.testing.assert_close(planted[0, :, 0, 0], x.mean(dim=(0, 2, 3)), atol=1 / 255, rtol=0)
    planted[:, :, :2, :2] = x[:, :, :2, :2]
    assert torch.equal(planted, tested)
