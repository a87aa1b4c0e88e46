"""Every command on every page: it is accepted as it stands; runs are planned, the rest is executed.

Pages in WALKED are followed step by step in a test of their own. The commands of all others run here, those that take
long in tests marked `slow`, on small numbers: runs by `shown.smaller`, others with the words of SMALLER behind them. A
new page needs no line here, unless its commands need files that no other page needs.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml
from siegebench.zoo import vehicle_scenes

from siegebench import api, cli, inventory, registry, soundness
from siegebench.data import ImageSet
from siegebench.inventory import Inventory, NamedModel
from siegebench.types import DataSource
from siegebench.workspace import Settings
from tests import runs
from tests.shown import PAGES, ROOT, Shown, commands, quick_attacks, smaller
from tests.test_replications import commands as declared
from tests.test_replications import differs, suite_of
from tests.test_soundness import small as untrained

WALKED = {
    "README.md": "tests/test_walk.py", "CONTRIBUTING.md": "tests/test_walk.py",
    "docs/add_a_backdoor.md": "tests/test_walk.py", "docs/many_machines.md": "tests/test_walk.py",
    "docs/own_network.md": "tests/test_walk.py", "docs/read_a_row.md": "tests/test_walk.py",
    "docs/submitting.md": "tests/test_submitting_page.py", "docs/wandb.md": "tests/test_cli_wandb.py",
}  # fmt: skip
# what stands for the words in capitals, in commands of sentences that are executed
FILL = {"SUITE": "quickstart", "defense=NAME": "defense=jpeg", "NAME": "pgd"}
LACKING = {"siegebench run try", "siegebench show my_backdoor"}  # in sentences: what is missing is said beside them
SLOW = ("siegebench scan", "siegebench soundness", "python benchmarks/")
ELSEWHERE = ("python -m pytest", "pip ", "make ", "ray ")  # the tests are run anyway, and installing is no test
SMALLER = {
    "siegebench scan": "--model '{name: small_vgg, recipe: {epochs: 1}}' --data digits "
    "--detector '{name: mm_bd, images: 2, steps: 5}' --clean 1 --count 20 --slots 1 --threads 1",
    "siegebench soundness": "--network one",
    "python benchmarks/compiled.py": "--networks cifar_resnet20 --turns 1 --device cpu --mode default",
    "python benchmarks/conformance.py": "--images 3 --network marabou --most 1",
    "python benchmarks/grid.py": "--images 2 --queries 100",
    "python benchmarks/plus.py": "--images 2 --networks marabou --seeds 0",
    "python benchmarks/fakes.py": "--images 4 --fakes none steps",
    "python benchmarks/attributes.py": "--seeds 1",
    "python benchmarks/studies.py": f"--store '{ROOT / 'leaderboard'}'",
    "python benchmarks/isolation.py": "--attacks badnets --seeds 0 --ways given",
    "python benchmarks/page.py": "--rows 200",
    "python benchmarks/poisonings.py": "--seeds 0",
    "python benchmarks/speed.py": "--images 6",
    "python benchmarks/textures.py": "--models byobnet_tiny --groups 2 --texels 4 --steps 2 --scenes 4",
}
OPTIONAL = ("art", "foolbox", "torchattacks", "pyautoattack", "adv_lib")  # of benchmarks; not in every environment
PUBLISHED = ROOT / "tests" / "published_files"
STEM = {str(page.relative_to(ROOT)): page for page in PAGES}
pages = pytest.mark.parametrize("page", STEM)


def start(shown: Shown) -> str:
    return " ".join(shown.words[:2])


# -------------------------------------------------------------------------------------------------- accepted as it is


def accept(shown: Shown, page: str) -> None:
    """Raise if the program would refuse these words."""
    first, *words = shown.words
    if first == "siegebench":
        accept_siegebench(words, shown.typed)
    elif first == "make":
        for name, told in (word.partition("=")[::2] for word in words):
            text = (ROOT / "Makefile").read_text()
            assert re.search(rf"^{name} \?=" if told else rf"^{name}:", text, re.MULTILINE), name
    elif first == "pip":
        extras = {name for word in words for name in re.findall(r"\[(.*)\]", word)}
        known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert extras <= set(known), extras
    elif first == "python" and words[0] == "-m":
        assert importlib.util.find_spec(words[1]) is not None, words[1]
        files = [word for word in words[2:] if word.endswith(".py")]
        assert all((ROOT / file).is_file() for file in files) or page in WALKED, files
    elif first == "python":
        if page not in WALKED:
            accept_script(words)
    else:
        accept_ray(words)


@functools.cache
def root() -> Any:
    """The command, with its subcommands."""
    return typer.main.get_command(cli.app)


def accept_siegebench(words: list[str], typed: bool) -> None:
    command = root()
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        assert words[0] in command.commands, words[0]
        command, words = command.commands[words[0]], words[1:]
    options = {name for param in command.params for name in param.opts}
    if hasattr(command, "commands"):  # options of `siegebench` itself act at once
        assert set(words) <= {*options, "--install-completion"}, words
    elif words or typed:
        words = [f"{word}={cli.ALL}" if word == "--save-images" else word for word in words]
        if not typed and words[-1] in options:  # a sentence may name an option without its value
            words, known = words[:-1], True
        else:
            known = False
        if not (known and not words):
            command.make_context(command.name, words)


class Accepted(Exception):
    """The words of a script were accepted."""


def accept_script(words: list[str]) -> None:
    parse = argparse.ArgumentParser.parse_args

    def stop(self: argparse.ArgumentParser, *given: Any) -> None:
        parse(self, *given)
        raise Accepted

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        patch.setattr(sys, "argv", words)
        with pytest.raises(Accepted):
            importlib.import_module(Path(words[0]).stem).main()


def accept_ray(words: list[str]) -> None:
    scripts = pytest.importorskip("ray.scripts.scripts", reason="no Ray: the extra `ray`")
    command = scripts.cli.commands[words[0]]
    command.make_context(words[0], words[1:])


@pages
def test_each_command_of_a_page_is_accepted(page: str) -> None:
    for shown in commands(STEM[page]):
        try:
            accept(shown, page)
        except SystemExit:
            pytest.fail(f"{page}: {shown.text}: refused")
        except pytest.skip.Exception:
            raise
        except Exception as error:
            told = error.format_message() if hasattr(error, "format_message") else error
            pytest.fail(f"{page}: {shown.text}: {type(error).__name__}: {told}")


def test_walked_pages_are_followed_by_the_tests_that_say_so() -> None:
    for page, file in WALKED.items():
        text = (ROOT / file).read_text()
        assert f'"{page}"' in text
        assert "steps(" in text


@pytest.mark.parametrize(
    "text",
    [
        "siegebench rnu quickstart", "siegebench run quickstart --sett a=1", "siegebench run",
        "siegebench run quickstart --executor rai", "siegebench --instal-completion", "make tset", "make test X=1",
        "pip install 'siegebench[rai]'", "python -m pytest tests/test_nothing.py", "python -m siegebench.nothing",
        "python benchmarks/conformance.py --onyl pgd", "python benchmarks/grid.py --networks resnet",
    ],
)  # fmt: skip
def test_what_a_program_refuses_is_found(text: str) -> None:
    with pytest.raises((Exception, SystemExit)):
        accept(Shown(text, True), "docs/new.md")


def test_commands_are_found_in_blocks_and_sentences(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "Type `siegebench list attacks` and see\n\n    siegebench show pgd  # a card\n\n```\nsiegebench run a \\\n"
        "  --dry-run\nan output\n```\n\n```python\nmake it\n```\n\n`make\ntest`, `makes`\n"
    )
    assert [(shown.text, shown.typed) for shown in commands(page)] == [
        ("siegebench run a --dry-run", True), ("siegebench show pgd  # a card", True),
        ("siegebench list attacks", False), ("make test", False),
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------ executed, or planned


@pytest.fixture
def planned_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans read no image and build no network; the splits that they list are kept for the next one."""

    def network(self: Inventory, model: Any, data: Any) -> NamedModel:
        return NamedModel(self.identified(model), trained=not model.entry.pretrained())

    def digest(self: ImageSet) -> str:
        return inventory.digest([self.name, len(self), self.num_classes])

    scan = DataSource.scan

    def kept(self: DataSource, split: str) -> ImageSet:
        known = (inventory.digest(self.parameters()), type(self), split, *(getattr(self, name) for name in self.local))
        if known not in _scanned:
            _scanned[known] = scan(self, split)
        return _scanned[known]

    monkeypatch.setattr(inventory, "subset", inventory.limited)  # the same images, not decoded
    monkeypatch.setattr(Inventory, "network", network)
    monkeypatch.setattr(ImageSet, "digest", property(digest))
    monkeypatch.setattr(DataSource, "scan", kept)
    monkeypatch.setattr(
        vehicle_scenes, "_cached", lambda *of: torch.zeros(of[2], 3, 64, 64, dtype=torch.uint8)
    )  # not drawn


_scanned: dict[Any, ImageSet] = {}
_said: dict[str, tuple[int, str, str]] = {}  # what each command said: several pages show the same one


def executed(page: str, *, slow: bool) -> Iterator[Shown]:
    """The commands of a page that run here: those of blocks, and those of sentences that only print."""
    for shown in commands(STEM[page]):
        filled = shown.text
        for word, meant in FILL.items() if not shown.typed else ():
            filled = re.sub(rf"\b{word}\b", meant, filled)
        prints = len(shown.words) > 2 and start(shown) in ("siegebench run", "siegebench list", "siegebench show")
        here = (
            page not in WALKED
            if shown.typed
            else prints and not re.search(r"\b[A-Z]{3,}\b|\.yaml", filled) and filled not in LACKING
        )
        here = here and not shown.text.startswith(ELSEWHERE)
        if here and slow == start(shown).startswith(SLOW):
            yield Shown(filled, shown.typed)


@pages
def test_the_commands_of_a_page_run(page: str, call: runs.Call, planned_only: None) -> None:
    wanted = [*executed(page, slow=False)]
    if any(start(shown) == "siegebench run" for shown in wanted) and "SIEGEBENCH_DATA" not in os.environ:
        pytest.skip("no data: set SIEGEBENCH_DATA")
    for shown in wanted:
        prepare(Path.cwd())
        first, *words = shown.words
        assert first == "siegebench", shown.text
        if shown.text not in _said:
            _said[shown.text] = call(*words, *(["--dry-run"] if words[0] == "run" else []))
        code, out, err = _said[shown.text]
        assert code == 0, (shown.text, err)
        assert out.strip() or err.strip(), shown.text


def prepare(folder: Path) -> None:
    """The files that a reader of the pages has."""
    board = folder / "model_info" / "cifar10" / "Linf"
    board.mkdir(parents=True, exist_ok=True)
    shutil.copy(PUBLISHED / "cifar10" / "Linf" / "Nobody2026Written.json", board / "NAME.json")
    shutil.copy(PUBLISHED / "attack_df.csv", folder)


# --------------------------------------------------------------------------------------------------------------- slow


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all pages: many show the same boards, and on few images the same networks serve."""
    return tmp_path_factory.mktemp("shared")


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in STEM if "replications" in page and declared(STEM[page].read_text())])
def test_the_runs_of_a_page_end_without_an_error(
    page: str, tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The board that the page declares, on a few images, with the entries that the page names."""
    for entry, attacks in quick_attacks():
        monkeypatch.setattr(entry, "adaptive", attacks)
    if "SIEGEBENCH_DATA" not in os.environ:
        pytest.skip("no data: set SIEGEBENCH_DATA")
    for k, (arguments, declaration) in enumerate(declared(STEM[page].read_text(encoding="utf-8"))):
        names = {name.strip().partition(".")[0] for name in declaration.partition(":")[2].split(",")}
        whole = suite_of(arguments)
        boards = [board for board in whole.boards if declaration and not differs(whole, board, declaration)]
        document = smaller(whole.model_copy(update={"boards": boards or whole.boards}), names)
        suite = tmp_path / f"smaller{k}.yaml"
        suite.write_text(yaml.safe_dump(document, sort_keys=False))
        rows = api.run(str(suite), Settings(root=str(shared), threads=1, device="cpu")).results
        wrong = [(row.cell.title, row.error) for row in rows if row.status == "error"]
        assert not wrong, (arguments, wrong[0])
        assert any(row.status == "ok" for row in rows), (arguments, [row.error for row in rows])


@pytest.fixture
def small_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with copies of the benchmarks, a checkpoint and a verifier; networks that are not trained."""
    from safetensors.torch import save_file

    from siegebench.types import ModelSource

    shutil.copytree(ROOT / "benchmarks", tmp_path / "benchmarks")
    shutil.copytree(ROOT / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "docs").mkdir()
    data = api.load_data("digits", count=1)
    torch.manual_seed(0)
    net = registry.build(ModelSource, "small_vgg").build_for(data)
    save_file({k: v.contiguous() for k, v in net.net.state_dict().items()}, tmp_path / "net.pth")
    verifier = tmp_path / "bin" / "verifier"
    verifier.parent.mkdir()
    verifier.write_text("#!/bin/sh\necho unknown\n")
    verifier.chmod(verifier.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{verifier.parent}:{os.environ['PATH']}")
    monkeypatch.setitem(soundness.SETS, "small", {"one": soundness.Planting(hidden=(8,))})
    monkeypatch.setattr(soundness, "planted", lambda *_, **__: untrained())
    return tmp_path


LONG = sorted({(start(shown), shown.text) for page in STEM for shown in executed(page, slow=True)})


@pytest.mark.slow
@pytest.mark.parametrize("text", [text for _, text in LONG])
def test_a_long_command_runs_on_small_numbers(text: str, small_world: Path, call: runs.Call) -> None:
    shown = Shown(text, True)
    words = [*shown.words, *shlex.split(SMALLER.get(start(shown), ""))]
    if words[0] == "siegebench":
        code, out, err = call(*words[1:])
    else:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, *words[1:]], cwd=small_world, env=env, capture_output=True, text=True)
        code, out, err = done.returncode, done.stdout, done.stderr
    if code and (reason := lacking(err)):
        pytest.skip(reason)
    assert code == 0, err
    assert out.strip()
    # other libraries in conformance.py: adv_lib is no extra, and errors that are on the page are known
    failed = re.findall(r"^  \S.*?  +(\w+: .*)$", out, re.MULTILINE)
    stored = json.loads((ROOT / "benchmarks" / "conformance.json").read_text()).values()
    known = {row["error"] for table in stored for row in table["rows"]}
    new = [error for error in failed if error not in known and lacking(error) != "adv_lib is not installed"]
    if reason := next(filter(None, map(lacking, new)), ""):
        pytest.skip(reason)
    assert not new


def lacking(said: str) -> str:
    """What the machine lacks, by the last line that a command said; empty if that is not why it failed."""
    last = (said.strip().splitlines() or [""])[-1]
    module = re.search(r"ModuleNotFoundError: No module named '(\w+)", last)
    if module and module[1] in OPTIONAL:
        return f"{module[1]} is not installed"
    if "none is installed" in last or "which is not installed" in last:
        return last
    return "no data: set SIEGEBENCH_DATA" if "SIEGEBENCH_DATA" not in os.environ and "SIEGEBENCH_DATA" in last else ""


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("Traceback\n  import art\nModuleNotFoundError: No module named 'art'", "art is not installed"),
        ("ModuleNotFoundError: No module named 'art.attacks'\nmore", ""),  # not why it ended
        ("ModuleNotFoundError: No module named 'benches'", ""),
        ("siegebench soundness: export needs onnx, which is not installed: pip install 'siegebench[onnx]'", "onnx"),
        ("ValueError: 3 images are too few", ""),
        ("", ""),
    ],
)
def test_only_what_is_not_installed_excuses_a_command(said: str, reason: str) -> None:
    found = lacking(said)
    assert reason in found
    assert bool(reason) == bool(found)


@pytest.mark.parametrize(
    ("script", "page"), [("conformance", "conformance"), ("grid", "query_budgets"), ("grid_label", "label_budgets")]
)
def test_a_page_is_what_its_script_makes_of_the_stored_rows(
    script: str, page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = importlib.import_module(script)
    monkeypatch.setattr(module, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--page"])
    module.main()
    assert (tmp_path / "page.md").read_text() == (ROOT / "docs" / f"{page}.md").read_text()
