"""`siegebench new` writes entries that are found, checked and clean as they are, and refuses what cannot be one."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from siegebench import cli, kinds, ops, skeleton
from siegebench.card import Card
from siegebench.classifier import Classifier
from siegebench.errors import ConfigError
from siegebench.testing import CLAUSES, check_instance
from siegebench.threat import ThreatModel
from siegebench.types import Entry
from tests import kit, runs

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("attack", "defense", "backdoor", "detector", "camouflage", "certifier")


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


def test_a_skeleton_in_a_checkout_is_found(tmp_path: Path) -> None:
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

    done = siegebench("new", "attack", "scratch_attack")
    assert done.stdout.split() == [str(checkout / "attacks" / f"scratch_attack.{end}") for end in ("py", "yaml")]
    assert "siegebench run try --set attack=scratch_attack" in done.stderr
    assert "scratch_attack" in {row["name"] for row in json.loads(siegebench("list", "attacks", "--json").stdout)}


class Workshop:
    """Entries of a package of one's own, checked in this process."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.monkeypatch, self.capsys = folder / "workshop", monkeypatch, capsys
        self.folder.mkdir()
        (self.folder / "__init__.py").write_text("")
        info = folder / "workshop-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: workshop\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[siegebench.cards]\nworkshop = workshop\n")
        monkeypatch.syspath_prepend(str(folder))

    def new(self, kind: str, paper: bool) -> tuple[Path, Path]:
        """A skeleton whose author has replaced every text that says TODO."""
        code, card = skeleton.write(kind, "scratch", self.folder)
        text = code.read_text().partition("\n# Before the pull request")[0] + "\n"
        differs = "\n    Differs from the paper: TODO say in what, or delete this line if there is no paper.\n"
        assert differs in text
        text = text.replace(differs, "\n    Differs from the paper: nothing.\n" if paper else "")
        code.write_text(text.replace("TODO say in one line what it is", "a scratch entry"))
        said = card.read_text().replace("TODO say in one sentence what a user gets from it", "A scratch entry")
        lines = [line for line in said.splitlines() if paper or not line.startswith("paper:")]
        card.write_text("\n".join(lines).replace("TODO Authors", "Authors") + "\n")
        return code, card

    def __call__(self, *words: str) -> tuple[int, str, str]:
        """(exit code, stdout, stderr) of a command about the entry as its files are now."""
        runs.forget()
        sys.modules.pop("workshop.scratch", None)
        importlib.invalidate_caches()
        self.monkeypatch.setattr(sys, "dont_write_bytecode", True)
        self.monkeypatch.setattr(sys, "argv", ["siegebench", words[0], "workshop/scratch", *words[1:]])
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        out, err = self.capsys.readouterr()
        return int(left.value.code or 0), out, err


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Workshop]:
    yield Workshop(tmp_path, monkeypatch, capsys)
    sys.modules.pop("workshop.scratch", None)
    sys.modules.pop("workshop", None)
    monkeypatch.undo()
    runs.forget()


def test_check_fails_until_the_texts_of_the_skeleton_are_replaced(workshop: Workshop) -> None:
    untouched = skeleton.write("attack", "scratch", workshop.folder)
    code, out, err = workshop("check")
    assert code == 1
    assert "FAIL  has no text of the skeleton left: scratch.yaml:5: replace the skeleton's text 'summary: TODO" in out
    assert err.startswith("workshop/scratch: ")
    assert err.endswith(" ok, 1 failed, 0 not checked\n")
    for file in untouched:
        file.unlink()
    workshop.new("attack", paper=False)
    code, out, _ = workshop("check", "--json")
    assert code == 0, out
    assert "is rebuilt from its description" in [c["name"] for c in json.loads(out)]


def test_check_fails_for_an_attack_that_leaves_the_ball(workshop: Workshop) -> None:
    code, _ = workshop.new("attack", paper=False)
    code.write_text(code.read_text().replace("return threat.project(x + ", "return (x + 2 * "))
    status, out, _ = workshop("check")
    assert status == 1
    assert "FAIL  returns images of the right shape range and budget" in out


def test_a_file_that_cannot_be_imported_is_one_line(workshop: Workshop) -> None:
    code, card = workshop.new("attack", paper=False)
    right = code.read_text()
    code.write_text(right.replace("gradient, _, _ = ", "gradient, _, _ == = "))
    line = right[: right.index("gradient, _, _ = ")].count("\n") + 1
    for command in ("check", "show"):
        status, out, err = workshop(command)
        assert (status, out) == (2, "")
        assert err.startswith(f"{code}:{line}: entry 'scratch:Scratch' cannot be ")
        assert err.endswith(": SyntaxError: invalid syntax\n")
        assert err.count("\n") == 1
    code.write_text(right.replace("step: Positive = 1.0", "step: Positive = no_such_name"))
    status, out, err = workshop("check")
    assert (status, err.count("\n")) == (2, 1)
    line = right[: right.index("step: Positive")].count("\n") + 1
    assert err.startswith(f"{code}:{line}: ")
    assert err.endswith("cannot be imported: NameError: name 'no_such_name' is not defined\n")
    code.write_text(right)
    card.write_text(card.read_text() + "presetz: {}\n")
    status, out, err = workshop("check")
    assert status == 2
    assert "scratch.yaml:6:1: unknown key 'presetz'. Did you mean presets?" in err


def test_check_says_what_it_could_not_test(workshop: Workshop) -> None:
    code, card = workshop.new("attack", paper=False)
    code.write_text(code.read_text().replace("step: Positive = 1.0", "step: Positive"))
    status, out, _ = workshop("check")
    assert status == 1, "nothing was tested, so nothing passed"
    told = "the parameter 'step' has no default; give a value, --set step=VALUE"
    assert out == f"----  is built: not checked ({told})\n"
    assert workshop("check", "--set", "step=1.0")[0] == 0
    assert workshop("check", "--set", "step=many")[0] == 2
    for line in ("presets: {whole: {step: 1.0}}\n", "expect: {step: 1.0}\n"):
        written = card.read_text()
        card.write_text(written + line)
        assert workshop("check")[0] == 0
        card.write_text(written)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("Differs from the paper: nothing.", "", "says how it differs from its paper: the card names a paper"),
        ("        contrast: c.", "", "explains its parameters: the docstring does not explain contrast"),
        ("Nothing is random.", "", "says what is random: "),
        ("return 0.5 + self.contrast * (x - 0.5)", "return x", "changes the model: logits and gradients"),
    ],
)
def test_check_asks_for_what_a_review_would_ask(old: str, new: str, told: str, workshop: Workshop) -> None:
    code, _ = workshop.new("defense", paper=True)
    text = code.read_text().replace("Lower the contrast of every image", "Scale every image")
    assert old in text
    code.write_text(text.replace(old, new))
    status, out, _ = workshop("check")
    assert status == 1
    assert [line.startswith(f"FAIL  {told}") for line in out.splitlines() if line.startswith("FAIL")] == [True], out


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
