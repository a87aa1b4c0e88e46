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
    code, card_path = skeleton.write(kind, f"scratch_{kind}", tmp_path)
    assert (code.name, card_path.name) == (f"scratch_{kind}.py", f"scratch_{kind}.yaml")
    card = Card.model_validate(yaml.safe_load(card_path.read_text()))
    assert (card.name, card.kind, card.version) == (f"scratch_{kind}", kind, 1)
    cls = load(code, card.entry.partition(":")[2])
    checks = check_instance(kind, cls(), sees=card.sees)
    assert [c for c in checks if not c.passed] == []
    assert len(checks) == len(CLAUSES[kind])
    assert not [c.name for c in checks if "not checked" in c.name]


@pytest.mark.parametrize("kind", KINDS)
def test_a_skeleton_is_clean(kind: str, tmp_path: Path) -> None:
    skeleton.write(kind, f"scratch_{kind}", tmp_path)
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


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout."""
    folder = tmp_path_factory.mktemp("copy") / "checkout"
    folder.mkdir()
    for name in ("siegebench", *kinds.FOLDERS, "leaderboard", "suites"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def siegebench(checkout: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "-m", "siegebench", *words], cwd=checkout, capture_output=True, text=True, env=env
    )


def finish(code: Path, card: Path, paper: bool = False) -> None:
    """What an author does to a skeleton: every text that says TODO is replaced."""
    text = code.read_text().partition("\n# Before the pull request")[0] + "\n"
    differs = "\n    Differs from the paper: TODO say in what, or delete this line if there is no paper.\n"
    text = text.replace(differs, "\n    Differs from the paper: nothing.\n" if paper else "")
    code.write_text(text.replace("TODO say in one line what it is", "a scratch entry"))
    said = card.read_text().replace("TODO say in one sentence what a user gets from it", "A scratch entry")
    lines = [line for line in said.splitlines() if paper or not line.startswith("paper:")]
    card.write_text("\n".join(lines).replace("TODO Authors", "Authors") + "\n")


def test_a_skeleton_is_found_and_passes_its_check_once_it_is_finished(checkout: Path) -> None:
    done = siegebench(checkout, "new", "attack", "scratch")
    code, card = (checkout / "attacks" / f"scratch.{end}" for end in ("py", "yaml"))
    assert done.stdout.split() == [str(code), str(card)]
    assert "siegebench run try --set attack=scratch" in done.stderr
    assert "scratch" in {row["name"] for row in json.loads(siegebench(checkout, "list", "attacks", "--json").stdout)}

    untouched = siegebench(checkout, "check", "scratch")
    assert untouched.returncode == 1
    assert "FAIL  has no text of the skeleton left: scratch.yaml:5: replace the skeleton's text" in untouched.stdout

    finish(code, card)
    checked = siegebench(checkout, "check", "scratch", "--json")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "is rebuilt from its description" in [c["name"] for c in json.loads(checked.stdout)]

    # and the check fails, with what is wrong, once the attack is broken
    right = code.read_text()
    code.write_text(right.replace("return threat.project(x + ", "return (x + 2 * "))
    broken = siegebench(checkout, "check", "scratch")
    assert broken.returncode == 1
    assert "FAIL  returns images of the right shape range and budget" in broken.stdout

    code.write_text(right.replace("gradient, _, _ = ", "gradient, _, _ == = "))
    line = right[: right.index("gradient, _, _ = ")].count("\n") + 1
    for command in ("check", "show"):
        unreadable = siegebench(checkout, command, "scratch")
        assert unreadable.returncode == 2
        assert unreadable.stderr.startswith(f"{code}:{line}: entry 'scratch:Scratch' cannot be ")
        assert unreadable.stderr.endswith(": SyntaxError: invalid syntax\n")
        assert unreadable.stderr.count("\n") == 1

    code.write_text(right.replace("step: Positive = 1.0", "step: Positive = no_such_name"))
    unknown = siegebench(checkout, "check", "scratch")
    assert (unknown.returncode, unknown.stderr.count("\n")) == (2, 1)
    assert unknown.stderr.endswith("cannot be imported: NameError: name 'no_such_name' is not defined\n")

    code.write_text(right.replace("step: Positive = 1.0", "step: Positive"))
    needs = siegebench(checkout, "check", "scratch")
    assert needs.returncode == 1
    told = "the parameter 'step' has no default; give a value, --set step=VALUE"
    assert needs.stdout == f"----  is built: not checked ({told})\n"
    assert siegebench(checkout, "check", "scratch", "--set", "step=1.0").returncode == 0
    card.write_text(card.read_text() + "presets: {whole: {step: 1.0}}\n")
    assert siegebench(checkout, "check", "scratch").returncode == 0

    card.write_text(card.read_text() + "presetz: {}\n")
    typo = siegebench(checkout, "check", "scratch")
    assert typo.returncode == 2
    assert "scratch.yaml:8:1: unknown key 'presetz'. Did you mean presets?" in typo.stderr
    for file in (code, card):
        file.unlink()


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("Differs from the paper: nothing.", "", "says how it differs from its paper: the card names a paper"),
        ("        contrast: c.", "        c: the contrast", "explains its parameters: the docstring does not explain"),
        ("Nothing is random.", "", "says what is random: "),
        ("return 0.5 + self.contrast * (x - 0.5)", "return x", "changes the model: logits and gradients"),
    ],
)
def test_check_asks_for_what_a_review_would_ask(old: str, new: str, told: str, checkout: Path) -> None:
    files = [checkout / "defenses" / f"scratch.{end}" for end in ("py", "yaml")]
    siegebench(checkout, "new", "defense", "scratch")
    finish(files[0], files[1], paper=True)
    text = files[0].read_text()
    assert old in text
    files[0].write_text(text.replace(old, new).replace("contrast", "c" if new.startswith("        c") else "contrast"))
    if new.startswith("        c"):
        files[0].write_text(files[0].read_text().replace("        c: the c\n", "        d: the depth.\n"))
    done = siegebench(checkout, "check", "scratch")
    for file in files:
        file.unlink()
    assert done.returncode == 1
    assert [line.startswith(f"FAIL  {told}") for line in done.stdout.splitlines() if line.startswith("FAIL")] == [True]


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
