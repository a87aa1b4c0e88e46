"""A stranger follows README and CONTRIBUTING word for word, in a copy of the checkout."""

from __future__ import annotations

import functools
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import siegebench as sb
from siegebench import api, cli, direct, kinds, signatures
from tests.walking import Step, walk

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = ("make setup", "make leaderboard", "make test", "make check", "source ")  # install, or run everything
# what makes a step small, beyond what the page says; the steps and their words stay
SMALLER = {
    "siegebench run try": [
        "data.count=10", "boards.0.attacks.2.steps=3", "boards.0.attacks.2.queries=20", "boards.0.measures=[]",
        "boards.1.queries=20", "models=[{name: byobnet_tiny, recipe: {epochs: 2, lr: 0.005, batch: 64}}]",
    ],
    "siegebench run try --set backdoor": [
        "models=[{name: byobnet_tiny, recipe: {epochs: 4, lr: 0.005, batch: 64}}]",
    ],
    "siegebench run corruption_digits": [
        "data.count=10", "models=[{name: byobnet_tiny, recipe: {epochs: 1}}]", "boards.0.defenses=[none]",
        "boards.0.corruptions=[contrast]", "boards.1.corruptions=[light_shift]",
    ],
}  # fmt: skip


def blocks(page: str) -> Iterator[tuple[str, str]]:
    """(language, text) of each fenced block."""
    text = (ROOT / page).read_text(encoding="utf-8")
    yield from re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def steps(page: str) -> Iterator[Step]:
    """What a reader does: types commands, saves files whose first line names them, runs Python."""
    for language, text in blocks(page):
        named = re.match(r"# (\S+\.(?:py|yaml))\b.*\n", text)
        if named:
            yield "file", (named.group(1), text[named.end() :] if language == "python" else text)
            if language == "python" and named.group(1)[0].isdigit():
                yield "script", named.group(1)
        elif language in ("console", "bash"):
            continue  # needs several machines
        elif language == "python":
            yield "python", text
        elif language == "yaml":
            yield "file", ("mine.yaml", text)
            yield "command", ["siegebench", "run", "mine.yaml", "--dry-run"]
        else:
            for line in text.splitlines():
                command = line.partition("  #")[0].strip()
                if command and not command.startswith(LEFT_OUT):
                    yield "command", shlex.split(command) + _smaller(command)


def _smaller(command: str) -> list[str]:
    changes = SMALLER.get(max((start for start in SMALLER if command.startswith(start)), key=len, default=""))
    if changes is None:
        return []
    return ["--executor", "serial", *(word for change in changes for word in ("--set", change))]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout that a stranger may write into."""
    target = tmp_path_factory.mktemp("walk") / "siegebench"
    target.mkdir()
    for name in ("siegebench", *kinds.FOLDERS, "leaderboard", "suites", "docs", "tests"):
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", target)
    return target


def environment(checkout: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}


def test_the_commands_and_examples_of_the_readme_run(checkout: Path) -> None:
    wanted = list(steps("README.md"))
    assert {kind for kind, _ in wanted} == {"file", "command", "python"}
    done = walk(checkout, wanted)
    for kind, text, code, out, err in done:
        assert code == 0, (text, out, err)
        assert out.strip() or kind == "file", text
    said = {" ".join(map(str, text)): out for kind, text, _, out, _ in done if kind == "command"}
    assert "48 cells, 48 to compute" in said["siegebench run mine.yaml --dry-run"]
    assert "byobnet_tiny" in said["siegebench report"]
    (python,) = [out for kind, _, _, out, _ in done if kind == "python"]
    assert re.search(r"accuracy under attack: 0\.\d\d", python)


def test_a_defense_is_added_checked_attacked_and_reported(checkout: Path) -> None:
    page = list(steps("CONTRIBUTING.md"))
    tested = next(text for kind, text in page if kind == "command" and text[:3] == ["python", "-m", "pytest"])
    new = ("command", ["siegebench", "new", "defense", "my_defense"])
    check = ("command", ["siegebench", "check", "my_defense"])
    wanted = [step for step in page[page.index(new) :] if step[1] != tested]
    files = [text[0] for kind, text in wanted if kind == "file"]
    assert files == ["defenses/my_defense.py", "defenses/my_defense.yaml", "tests/defenses/test_my_defense.py"]
    wanted.insert(1, check)  # before anything is written
    (_, _, _, created, _), (_, _, status, out, _), *rest = walk(checkout, wanted)
    assert created.split() == [str(checkout / "defenses" / f"my_defense.{end}") for end in ("py", "yaml")]
    assert status == 1
    (failed,) = [line for line in out.splitlines() if line.startswith("FAIL")]
    assert failed.startswith("FAIL  has no text of the skeleton left: my_defense.yaml:5: replace the skeleton's text")
    said = {}
    for _, text, code, out, err in rest:
        assert code == 0, (text, out, err)
        said[" ".join(text[:3])] = out
    assert "FAIL" not in said["siegebench check my_defense"]
    assert "----" not in said["siegebench check my_defense"]
    for command in ("siegebench run try", "siegebench report"):
        assert re.search(r"^ *\d(-\d)? +byobnet_tiny +my_defense ", said[command], re.MULTILINE), said[command]
    assert "`my_defense`" in (checkout / "docs" / "catalogue.md").read_text()

    for command in (
        [sys.executable, *tested[1:], "-p", "no:cacheprovider"],
        [sys.executable, "-m", "ruff", "check", *files[::2]],
        [sys.executable, "-m", "ruff", "format", "--check", *files[::2]],
    ):
        done = subprocess.run(command, cwd=checkout, env=environment(checkout), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_backdoor_is_added_checked_and_measured(checkout: Path) -> None:
    said = {}
    for kind, text, code, out, err in walk(checkout, list(steps("docs/add_a_backdoor.md"))):
        assert code == 0, (text, out, err)
        said[" ".join(text[:3]) if kind == "command" else text[0]] = out
    assert "FAIL" not in said["siegebench check my_backdoor"]
    ranked = said["siegebench run try"]
    for defense in ("none", "fine_tuning"):
        assert re.search(rf"^ *\d(-\d)? +{defense} ", ranked, re.MULTILINE), f"{defense} is not ranked"
    assert "my_backdoor" not in ranked, "below the table stand backdoors that did not work"


def test_the_commands_of_many_machines_run(tmp_path: Path) -> None:
    for _, text, code, out, err in walk(ROOT, list(steps("docs/many_machines.md")), tmp_path):
        assert code == 0, (text, out, err)
        assert out.strip()


def test_make_shell_has_the_commands(tmp_path: Path) -> None:
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    command = tmp_path / "venv" / "bin" / "siegebench"
    command.write_text("#!/bin/sh\necho this one\n")
    command.chmod(0o755)
    (tmp_path / "venv" / ".siegebench-installed").touch()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    os.utime(tmp_path / "venv" / ".siegebench-installed", (4e9, 4e9))
    outer = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "VENV")  # `make test` runs this test too: its options are not ours
    done = subprocess.run(
        ["make", "--silent", "shell", "VENV=venv"], cwd=tmp_path, input="siegebench\n", capture_output=True, text=True,
        env={**{k: v for k, v in os.environ.items() if k not in outer}, "SHELL": "/bin/sh"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "this one"


PAGE = "docs/own_network.md"


@pytest.fixture(scope="module")
def own_network(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, str]]:
    """(exit code, stdout, stderr) of each script and command of the page, in an empty folder."""
    folder = tmp_path_factory.mktemp("own")
    wanted = [step for step in steps(PAGE) if step[0] != "command" or _works(step[1])]
    done = walk(ROOT, wanted, folder)
    return {" ".join(t) if isinstance(t, list) else str(t): (*rest,) for kind, t, *rest in done if kind != "file"}


def _works(command: object) -> bool:
    return command[:2] != ["siegebench", "doctor"] or "data" in inspect.signature(cli.doctor).parameters


def _grey_folders() -> bool:
    return "channels" in signatures.parameters("dataset", "image_folder")


EVALUATE = "siegebench evaluate resnet.safetensors --model timm/test_resnet --data mine"
# what a version must have for an example of the page
NEEDS = {
    "1_attack.py": lambda: "report" in inspect.getsource(direct),
    "2_evaluate.py": lambda: {"x", "y", "data"} <= inspect.signature(api.evaluate).parameters.keys(),
    "3_checkpoint.py": lambda: hasattr(sb, "load_checkpoint"),
    "4_folder.py": _grey_folders,
    "siegebench doctor --data {name: image_folder, folder: mine, channels: 1}": lambda: (
        "data" in inspect.signature(cli.doctor).parameters
    ),
    "5_weights.py": lambda: True,
    "siegebench run mine.yaml --dry-run": lambda: True,
    "siegebench run mine.yaml --executor serial": lambda: True,
    "siegebench report --format md --out report.md": lambda: True,
    f"{EVALUATE} --dry-run": lambda: True,
    f"{EVALUATE} --suite mine.yaml --images 20 --slots 1": lambda: True,
    "siegebench evaluate net.pth --model {name: python_file, file: network.py, make: Net} --data digits --images 20 "
    "--dry-run": lambda: True,
    "6_script.py": lambda: True,
}


def test_the_page_has_these_examples() -> None:
    named = [" ".join(text) if kind == "command" else text for kind, text in steps(PAGE) if kind != "file"]
    assert named == list(NEEDS)


@pytest.mark.parametrize("example", NEEDS)
def test_an_example_of_a_network_of_ones_own_runs(example: str, own_network: dict[str, tuple[int, str, str]]) -> None:
    if not NEEDS[example]():
        pytest.skip("this version lacks what the example shows")
    code, _, err = own_network[example]
    assert code == 0, err


# ------------------------------------------------------------------------------------------------------- read a row


def test_a_row_is_read_and_made_again(tmp_path: Path) -> None:
    """The commands of docs/read_a_row.md, with shorter trainings; KEY is the key of a row that they have made."""
    wanted = [_shorter(step) for step in steps("docs/read_a_row.md")]
    at = next(i for i, (_, text) in enumerate(wanted) if "KEY" in text)
    first = walk(ROOT, wanted[:at], tmp_path)
    assert [code for *_, code, _, _ in first] == [0] * at, first
    page = (tmp_path / "board.html").read_text(encoding="utf-8")
    row = next((tmp_path / "results").rglob("pgd*.json"))
    key = row.stem.rpartition("-")[2]
    assert f"siegebench run row.yaml --only {key} --store again" in page
    then = walk(
        ROOT, [(kind, [key if word == "KEY" else word for word in text]) for kind, text in wanted[at:]], tmp_path
    )
    assert [code for *_, code, _, _ in then] == [0] * len(then), then
    again = next((tmp_path / "again").rglob(row.name))
    old, new = (json.loads(path.read_text()) for path in (row, again))
    assert old["metrics"] == new["metrics"]
    assert f"make it again: siegebench run row.yaml --only {key} --store again" in then[0][-2]


def _shorter(step: Step) -> Step:
    kind, text = step
    short = {"epochs: 4": "epochs: 1", "[0, 1]": "[0]"}
    if kind == "file":
        return kind, (text[0], functools.reduce(lambda said, old: said.replace(old, short[old]), short, text[1]))
    return step
