"""`siegebench new` writes entries that are found, checked and clean as they are, and refuses what cannot be one."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from siegebench import kinds, ops, skeleton
from siegebench.card import Card
from siegebench.classifier import Classifier
from siegebench.errors import ConfigError
from siegebench.testing import CLAUSES, check_instance
from siegebench.threat import ThreatModel
from siegebench.types import Entry
from tests import kit

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("attack", "defense", "backdoor", "detector")


def load(path: Path, name: str) -> type[Entry]:
    spec = importlib.util.spec_from_file_location(f"written_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # get_type_hints looks the module up
    spec.loader.exec_module(module)
    return getattr(module, name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_skeleton_keeps_the_contract_as_it_is(kind: str, tmp_path: Path) -> None:
    code, card_path = skeleton.write(kind, f"my_{kind}", tmp_path)
    assert (code.name, card_path.name) == (f"my_{kind}.py", f"my_{kind}.yaml")
    card = Card.model_validate(yaml.safe_load(card_path.read_text()))
    assert (card.name, card.kind, card.version) == (f"my_{kind}", kind, 1)
    cls = load(code, card.entry.partition(":")[2])
    checks = check_instance(kind, cls(), sees=card.sees)
    assert [c for c in checks if not c.passed] == []
    assert len(checks) == len(CLAUSES[kind])
    assert not [c.name for c in checks if "not checked" in c.name]


@pytest.mark.parametrize("kind", KINDS)
def test_a_skeleton_is_clean(kind: str, tmp_path: Path) -> None:
    skeleton.write(kind, f"my_{kind}", tmp_path)
    skeleton.write(kind, f"{kind}_with_a_name_that_is_the_longest"[: skeleton.LONGEST], tmp_path)
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--config", str(ROOT / "pyproject.toml"), str(tmp_path)],
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout


def test_the_attack_raises_the_margin(tmp_path: Path, linear: Classifier) -> None:
    code, _ = skeleton.write("attack", "one_step", tmp_path)
    attack = load(code, "OneStep")()
    x = kit.grey_images()
    y = linear(x).argmax(dim=1)
    for norm, eps in (("linf", 0.05), ("l2", 1.0)):
        x_adv, _ = kit.attack_with(attack, linear, x, y, ThreatModel(norm=norm, eps=eps))
        assert (ops.margin(linear(x_adv), y) > ops.margin(linear(x), y)).all()
        torch.testing.assert_close(ops.size(x_adv - x, norm), torch.full((16,), eps), rtol=1e-4, atol=1e-6)


def test_a_skeleton_in_a_checkout_is_found_and_passes_its_check(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for name in ("siegebench", *kinds.FOLDERS, "leaderboard", "suites"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", checkout)
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def siegebench(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "siegebench", *words], cwd=checkout, capture_output=True, text=True, env=env
        )

    done = siegebench("new", "attack", "my_attack")
    assert done.stdout.split() == [str(checkout / "attacks" / f"my_attack.{end}") for end in ("py", "yaml")]
    assert "my_attack" in {row["name"] for row in json.loads(siegebench("list", "attacks", "--json").stdout)}
    checked = siegebench("check", "my_attack", "--json")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    names = [c["name"] for c in json.loads(checked.stdout)]
    assert "is rebuilt from its description" in names

    # and the check fails, with what is wrong, once the attack is broken
    code = checkout / "attacks" / "my_attack.py"
    code.write_text(code.read_text().replace("return threat.project(x + ", "return (x + 2 * "))
    broken = siegebench("check", "my_attack")
    assert broken.returncode == 1
    assert "FAIL  returns images of the right shape range and budget" in broken.stdout


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("MyAttack", "my_attack"),
        ("my-attack", "my_attack"),
        ("2fast", "fast"),
        ("my__attack", "my_attack"),
        ("_mine", "mine"),
        ("class", "my_attack"),
        ("", "my_attack"),
        ("../evil", "evil"),
        ("a" * 41, "my_attack"),
        ("Größe", "gr_e"),
    ],
)
def test_bad_names_are_refused_with_a_good_one(name: str, instead: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"try '{instead}'"):
        skeleton.write("attack", name, tmp_path)
    assert list(tmp_path.rglob("*")) == []


def test_what_exists_is_never_overwritten(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'pgd' is already registered by .*pgd\.yaml"):
        skeleton.write("attack", "pgd", tmp_path)
    (tmp_path / "mine.yaml").write_text("precious")
    with pytest.raises(ConfigError, match=r"mine\.yaml exists"):
        skeleton.write("attack", "mine", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.yaml"]
    assert (tmp_path / "mine.yaml").read_text() == "precious"


def test_unknown_kinds_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean defense"):
        skeleton.write("defence", "mine", tmp_path)
    with pytest.raises(ConfigError, match="no such folder"):
        skeleton.write("attack", "mine", tmp_path / "nowhere")


def test_a_skeleton_exists_for_every_kind_one_writes() -> None:
    assert set(skeleton.CODE) == set(KINDS) < set(kinds.KINDS)
