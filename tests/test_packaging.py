"""What pip installs is what the checkout holds, and it works where no checkout is."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from siegebench import kinds, registry

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "siegebench"
FOLDERS = {*kinds.FOLDERS, "leaderboard", "suites"}
INSIDE = {"cli", "executors", "render", "soundness", "submissions", "testing", "tracks", "types"}  # of the harness
NOT_SHIPPED = {"__pycache__", "rows"}  # rows are results of this repository, not of the package


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def packages() -> dict[str, Path]:
    """Package name to folder, as setuptools is told."""
    setup = project()["tool"]["setuptools"]
    folders: dict[str, str] = setup["package-dir"]
    return {name: ROOT / folders.get(name, name.replace(".", "/")) for name in setup["packages"]}


def wanted_files() -> set[str]:
    """Every file that an installed package needs, as its path in the wheel."""
    return {
        f"{name.replace('.', '/')}/{path.name}"
        for name, folder in packages().items()
        for path in folder.iterdir()
        if path.is_file() and not path.name.startswith(".") and path.suffix != ".pyc"
    }


def test_packages_are_the_folders() -> None:
    with_code = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert with_code == FOLDERS | {PACKAGE}
    assert set(packages()) == {PACKAGE} | {f"{PACKAGE}.{folder}" for folder in FOLDERS | INSIDE}
    for name, folder in packages().items():
        assert folder.is_dir(), f"{name} is mapped to {folder}, which does not exist"
        assert folder.name == name.rpartition(".")[2]


def test_folders_are_flat() -> None:
    """A sub-package would work in the checkout and be missing from the wheel."""
    for folder in packages().values():
        inner = {p.name for p in folder.iterdir() if p.is_dir() and (any(p.glob("*.py")) or any(p.glob("*.yaml")))}
        inner -= INSIDE if folder.name == PACKAGE else set()
        assert inner - NOT_SHIPPED == set(), f"{folder.name} holds folders that no wheel would carry"


def test_package_data_covers_every_file() -> None:
    patterns = project()["tool"]["setuptools"]["package-data"]["*"]
    left_out = [
        name
        for name in wanted_files()
        if not name.endswith(".py") and not any(fnmatch(name.rpartition("/")[2], p) for p in patterns)
    ]
    assert left_out == []


def test_every_import_is_a_declared_dependency() -> None:
    """What a file imports at its top is always installed; what a function imports may be in an extra."""
    known = {
        "PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml", "art": "adversarial-robustness-toolbox",
        "huggingface_hub": "huggingface-hub", "markupsafe": "jinja2",  # the one needs the other
    }  # fmt: skip

    def names(requirements: list[str]) -> set[str]:
        return {r.split(">")[0].split("[")[0].split("<")[0].split("=")[0].strip().lower() for r in requirements}

    always = names(project()["project"]["dependencies"])
    extras = names([r for group in project()["project"]["optional-dependencies"].values() for r in group])
    missing = []
    for folder in packages().values():
        for path in folder.glob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                modules = (
                    [a.name for a in node.names] if isinstance(node, ast.Import)
                    else [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
                )  # fmt: skip
                for module in modules:
                    top = module.partition(".")[0]
                    if top in sys.stdlib_module_names or top in (PACKAGE, "__future__"):
                        continue
                    package = known.get(top, top).lower()
                    allowed = always if node in tree.body else always | extras
                    if package not in allowed:
                        missing.append(f"{folder.name}/{path.name}:{node.lineno} imports {top}")
    assert not missing, "\n" + "\n".join(missing)


def run(command: list[str], cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "SIEGEBENCH_DATA")}
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={**clean, **env})
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done


def copy_of_sources(target: Path) -> Path:
    """A copy of what git would hold, so that building leaves nothing in the checkout."""
    skip = shutil.ignore_patterns("__pycache__", ".*", "build", "dist", "*.egg-info", "results", "shared")
    return Path(shutil.copytree(ROOT, target, ignore=skip))


TINY_SUITE = """
suite: tiny
data: {set: digits, count: 20}
models: [{name: timm/test_byobnet, recipe: {epochs: 1}}]
boards:
  - track: white_box
    defenses: [none, bit_depth]
    attacks: [fgsm]
    threats: [{norm: linf, eps: 16/255}]
"""


@pytest.mark.slow
def test_a_wheel_works_without_the_checkout(tmp_path: Path) -> None:
    source, site, away = copy_of_sources(tmp_path / "source"), tmp_path / "site", tmp_path / "away"
    away.mkdir()
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path)], source)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == wanted_files()

    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target"]
    run([*pip, str(site), str(wheel)], away)
    # -P and PYTHONPATH: the installed copy comes before an editable install of the checkout, and cwd is not searched
    env = {"PYTHONPATH": str(site), "PYTHONSAFEPATH": "1", "HF_HUB_OFFLINE": "1"}
    where = "import siegebench, siegebench.attacks.pgd as p; print(*siegebench.__path__, p.__file__, sep='\\n')"
    for place in run([sys.executable, "-c", where], away, **env).stdout.split("\n"):
        assert not place or Path(place).is_relative_to(site), f"{place} is not in the installed copy"

    command = [sys.executable, "-m", PACKAGE]
    listed = json.loads(run([*command, "list", "attacks", "--json"], away, **env).stdout)
    assert {"pgd", "autoattack"} <= {row["name"] for row in listed}
    assert {row["name"] for row in listed} == set(registry.names("attack"))
    (away / "tiny.yaml").write_text(TINY_SUITE)
    ran = run([*command, "run", "tiny.yaml", "--executor", "serial", "--json"], away, **env)
    boards = json.loads(ran.stdout)
    assert boards
    assert len(list((away / "results").rglob("*.json"))) >= 2
    assert (away / "results" / "tiny.html").is_file()
    done = run([*command, "check", "fgsm", "--json"], away, **env)
    assert all(check["passed"] for check in json.loads(done.stdout))
    refused = subprocess.run(
        [*command, "new", "attack", "mine"], cwd=away, capture_output=True, text=True, env={**os.environ, **env}
    )
    assert refused.returncode == 2
    assert "--folder" in refused.stderr
    assert len(run([*command, "new", "attack", "mine", "--folder", "."], away, **env).stdout.split()) == 2
