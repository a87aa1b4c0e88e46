"""The house stays in order: who imports whom, what a light command may load, what every card and file must have."""

from __future__ import annotations

import ast
import graphlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from siegebench import kinds, registry, signatures
from siegebench.store import Store
from tests import rows

ROOT = Path(__file__).resolve().parent.parent
HARNESS = "siegebench"
FOLDERS = (*kinds.FOLDERS, "leaderboard", "suites")
ALGORITHMS = (
    "attack", "defense", "backdoor", "detector", "corruption", "camouflage", "certifier", "theft", "leak", "sharing",
    "study",
)  # fmt: skip
BASES = {
    "Attack", "MinimalAttack", "Measure", "Defense", "BackdoorAttack", "InputDetector", "TrainedDetector",
    "DatasetDetector", "ModelDetector", "ModelSource", "DataSource", "SceneSource", "ObjectDetectorSource",
    "Corruption", "Camouflage", "Certifier", "Theft", "Leak", "Sharing", "Study",
}  # fmt: skip
LONGEST = 400  # lines of a file


def none(found: list[str]) -> None:
    """Fail with one line a finding."""
    assert not found, "\n" + "\n".join(found)


# From the ground up: a module imports its own layer and those before it. Every module of the harness is named.
LAYERS = (
    ("__init__", "errors", "kinds", "worker", "progress", "files", "pictures", "screenshot", "stats", "accountant"),
    ("draws", "threat", "metrics", "yamlmarks", "strictjson", "bundled", "memory"),
    ("ops", "cells", "card"),
    ("render",),
    ("registry",),
    ("signatures",),
    ("titles", "origin", "settings"),
    ("schema", "sources"),
    (
        "published",
        "store",
        "records",
        "heads",
    ),
    (
        "reuse",
        "pickles",
        "weights",
        "contents",
        "fitting",
        "rows",
        "data",
        "environment",
    ),
    ("classifier", "state"),
    ("text",),
    ("clipping", "object_detector", "spikes", "ncnn"),
    ("inputs", "sighting"),
    ("prepare", "checkpoints"),
    ("layers", "bounds", "per_image", "shards"),
    ("traced",),
    ("ledger",),
    ("oracle",),
    ("search",),
    ("types",),
    ("guarded", "leakage"),
    ("train", "contrastive", "catalogue", "skeleton", "doctor"),
    ("inventory", "artifacts", "identity", "placeholders"),
    ("workspace", "given"),
    ("tracks",),
    ("config", "evaluation", "testing"),
    ("plan", "executors"),
    ("api", "direct"),
    ("importers", "scanning", "evaluating", "soundness", "submissions"),
    ("reporting",),
    ("cli",),
    ("__main__",),
)


# ----------------------------------------------------------------------------------------------------- who imports whom


def imports(tree: ast.AST, *, loading_only: bool = False) -> Iterator[tuple[int, str, int]]:
    """(line, module, leading dots) of the imports in a file.

    With `loading_only`, those that run when the module is imported: not in functions, not for type checkers.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, 0
        elif isinstance(node, ast.ImportFrom):
            if node.module == HARNESS or (node.module is None and node.level):
                for alias in node.names:  # `from siegebench import ops` names a module
                    yield node.lineno, ".".join(filter(None, (node.module, alias.name))), node.level
            else:
                yield node.lineno, node.module or "", node.level
        elif not (loading_only and runs_later(node)):
            yield from imports(node, loading_only=loading_only)


def runs_later(node: ast.AST) -> bool:
    """Whether importing the module does not run this part of it."""
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.unparse(node.test)
    return isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))


def trespasses(root: Path) -> list[str]:
    """Imports that reach from one folder of entries into another, or name a folder without the package in front."""
    out = []
    for folder in FOLDERS:
        for path in sorted((root / folder).glob("*.py")):
            for line, module, dots in imports(ast.parse(path.read_text(encoding="utf-8"))):
                first, _, rest = module.partition(".")
                inside = rest.partition(".")[0]
                if dots > 1 or (
                    not dots
                    and ((first == HARNESS and inside in FOLDERS and inside != folder) or first in (*FOLDERS, "tests"))
                ):
                    out.append(
                        f"{folder}/{path.name}:{line} imports {'.' * dots}{module}; take it as a parameter instead"
                    )
    for path in sorted((root / HARNESS).rglob("*.py")):
        for line, module, _ in imports(ast.parse(path.read_text(encoding="utf-8"))):
            first, _, rest = module.partition(".")
            if first in (*FOLDERS, "tests"):
                out.append(f"{HARNESS}/{path.name}:{line} imports {module}; its name is {HARNESS}.{module}")
            elif first == HARNESS and rest.partition(".")[0] in ("attacks", "defenses", "backdoors", "zoo"):
                out.append(f"{HARNESS}/{path.name}:{line} imports {module}; ask the registry for entries")
    return out


def test_no_folder_reaches_into_another() -> None:
    none(trespasses(ROOT))


def test_trespasses_are_found_and_told(tmp_path: Path) -> None:
    for folder in (HARNESS, *FOLDERS):
        (tmp_path / folder).mkdir()
    (tmp_path / "defenses" / "bit_depth.py").write_text("import torch\nimport siegebench.attacks.pgd\n")
    (tmp_path / "defenses" / "jpeg.py").write_text("def f():\n    from siegebench.zoo import files\n")
    (tmp_path / "defenses" / "nab.py").write_text("from attacks.pgd import PGD\n")
    (tmp_path / "defenses" / "up.py").write_text("from ..attacks import pgd\n")
    allowed = "from siegebench import ops\nfrom siegebench.attacks.pgd import PGD\nfrom .square import Square\n"
    (tmp_path / "attacks" / "fine.py").write_text(allowed + "from . import fab\n")
    (tmp_path / "siegebench" / "plan.py").write_text("from siegebench.attacks.pgd import PGD\nimport zoo\n")
    assert trespasses(tmp_path) == [
        "defenses/bit_depth.py:2 imports siegebench.attacks.pgd; take it as a parameter instead",
        "defenses/jpeg.py:2 imports siegebench.zoo; take it as a parameter instead",
        "defenses/nab.py:1 imports attacks.pgd; take it as a parameter instead",
        "defenses/up.py:1 imports ..attacks; take it as a parameter instead",
        "siegebench/plan.py:1 imports siegebench.attacks.pgd; ask the registry for entries",
        "siegebench/plan.py:2 imports zoo; its name is siegebench.zoo",
    ]


def modules() -> dict[str, list[Path]]:
    """The modules of the harness and their files: several for one that is a package."""
    found: dict[str, list[Path]] = {}
    for path in sorted((ROOT / HARNESS).rglob("*.py")):
        parts = path.relative_to(ROOT / HARNESS).parts
        found.setdefault(parts[0].removesuffix(".py"), []).append(path)
    return found


def harness() -> dict[str, dict[str, str]]:
    """For each module of the harness, the modules it loads and where."""
    files = modules()
    graph: dict[str, dict[str, str]] = {name: {} for name in files}
    for name, paths in files.items():
        for path in paths:
            for line, module, _ in imports(ast.parse(path.read_text(encoding="utf-8")), loading_only=True):
                inside = module.removeprefix(f"{HARNESS}.").partition(".")[0]
                if module.startswith(f"{HARNESS}.") and inside in files and inside != name:
                    graph[name][inside] = f"{path.relative_to(ROOT)}:{line}"
    return graph


def test_harness_has_no_circles() -> None:
    graph = harness()
    try:
        tuple(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail("circle: " + " <- ".join(error.args[1]))


def test_harness_keeps_its_order() -> None:
    graph = harness()
    layer = {name: i for i, names in enumerate(LAYERS) for name in names}
    assert layer.keys() == graph.keys(), "LAYERS names every module, and no other"
    out = [
        f"{where} imports {HARNESS}.{other}, which comes later"
        for name, loaded in graph.items()
        for other, where in loaded.items()
        if layer[other] > layer[name]
    ]
    none(out)


def test_importing_the_package_loads_only_itself() -> None:
    heavy = ("sklearn", "scipy", "timm", "torchvision", "art", "torchattacks", "wandb", "ray", "mitsuba")
    code = (
        "import sys, siegebench; print([m for m in sys.modules if m.startswith('siegebench.')])\n"
        f"import siegebench.api; print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "[]"]


# ------------------------------------------------------------------------------------------------------- light commands

HEAVY = (
    "torch", "torchvision", "timm", "wandb", "art", "torchattacks", "ray", "sklearn", "pyarrow", "huggingface_hub",
    "trimesh", "mitsuba",
)  # fmt: skip
PROBE = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from siegebench.cli import main
found, seen = {}, set()
for command in json.load(sys.stdin):
    sys.argv, out, err = ["siegebench", *command.split()], io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main()
    except SystemExit as end:
        code = end.code or 0
    loaded = [m for m in HEAVY if m in sys.modules and m not in seen]
    seen.update(loaded)
    found[command] = code, out.getvalue(), err.getvalue(), loaded
print(json.dumps(found))
"""
LIGHT = {
    "--help": "Usage",
    "--version": "0.",
    **{f"list {kind.plural} --json": '"name"' for kind in kinds.KINDS.values()},
    "list suites --json": "quickstart",
    "show pgd --json": '"steps"',
    "report --store STORE": "White box",
    "report --store STORE --format html": "<html",
}


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, str, list[str]]]:
    """(exit code, stdout, stderr, what heavy modules it loaded) of each command, one after the other in a process."""
    store = tmp_path_factory.mktemp("store")
    Store(store).put(rows.attacked("pgd", 100))
    Store(store).put(rows.attacked("autoattack", 90))
    done = subprocess.run(
        [sys.executable, "-c", PROBE.replace("HEAVY", repr(HEAVY))],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"},
        input=json.dumps([command.replace("STORE", str(store)) for command in LIGHT]),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(zip(LIGHT, json.loads(done.stdout).values(), strict=True))


@pytest.mark.parametrize(("command", "expected"), LIGHT.items())
def test_light_commands_load_nothing_heavy(
    command: str, expected: str, light: dict[str, tuple[int, str, str, list[str]]]
) -> None:
    code, out, err, loaded = light[command]
    assert code == 0, err
    assert expected in out
    assert loaded == [], f"`siegebench {command}` loads {loaded}"


# ------------------------------------------------------------------------------------------------------ cards and files


def own_cards() -> list[registry.Registered]:
    return [r for r in registry.cards().values() if r.package.startswith(f"{HARNESS}.")]


def classes(path: Path) -> dict[str, ast.ClassDef]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def test_cards_are_named_like_their_files_and_say_what_they_are() -> None:
    assert len(own_cards()) > 20
    for found in own_cards():
        assert found.path.stem == found.card.name
        assert found.card.summary.rstrip().endswith("."), f"{found.path.name}: the summary is a sentence"
        assert "\n" not in found.card.summary.strip(), f"{found.path.name}: the summary is one line"
        assert "Say in one sentence" not in found.card.summary, f"{found.path.name}: still the skeleton's summary"
        module, _, cls = found.card.entry.partition(":")
        assert cls in classes(found.path.parent / f"{module}.py"), f"{found.path.name}: no class {cls} in {module}.py"


def test_every_entry_has_a_card() -> None:
    carded = {(r.path.parent.name, r.card.entry) for r in own_cards()}
    every = [node for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") for node in classes(path).values()]
    shared = {ast.unparse(base) for node in every for base in node.bases}  # what others derive from is no entry itself
    missing = [
        f"{folder}/{path.name}: {name} has no card"
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        for name, node in classes(path).items()
        if BASES & {ast.unparse(base) for base in node.bases} and not name.startswith("_") and name not in shared
        if (folder, f"{path.stem}:{name}") not in carded
    ]
    none(missing)


def test_every_public_class_says_what_it_is() -> None:
    silent = [
        f"{folder}/{path.name}: {name} has no docstring"
        for folder in (HARNESS, *FOLDERS)
        for path in sorted((ROOT / folder).rglob("*.py"))
        for name, node in classes(path).items()
        if not name.startswith("_") and not ast.get_docstring(node)
    ]
    none(silent)


def test_every_module_says_what_it_is() -> None:
    silent = [
        f"{folder}/{path.name}"
        for folder in (HARNESS, *FOLDERS)
        for path in sorted((ROOT / folder).rglob("*.py"))
        if path.read_text(encoding="utf-8").strip() and not ast.get_docstring(ast.parse(path.read_text("utf-8")))
    ]
    none(silent)


def test_entries_with_a_paper_say_how_they_differ_from_it() -> None:
    silent = []
    for found in own_cards():
        card = found.card
        if card.kind in ALGORITHMS and card.paper and not (card.control or card.family):
            module, _, cls = card.entry.partition(":")
            said = ast.get_docstring(classes(found.path.parent / f"{module}.py")[cls]) or ""
            if "Differs from the paper:" not in said:
                silent.append(f"{found.path.parent.name}/{module}.py: {cls} lacks 'Differs from the paper: ...'")
    none(silent)


def test_parameters_are_explained() -> None:
    silent = []
    for found in own_cards():
        said = "\n".join(signatures.docstrings(found.card.kind, found.name))
        for name in signatures.parameters(found.card.kind, found.name):
            if not re.search(rf"\b{name}\b", said):
                silent.append(f"{found.path.parent.name}/{found.card.entry} does not explain {name}")
    none(silent)


def test_parameters_of_the_base_class_of_a_kind_are_read_from_the_source() -> None:
    badnets = signatures.parameters("backdoor", "badnets")
    assert (badnets["rate"]["default"], badnets["side"]["default"]) == ("0.1", "3")
    assert signatures.parameters("backdoor", "sig")["rate"]["default"] == "0.05"  # its own, not the base's
    assert signatures.parameters("attack", "eot")["attack"]["default"] is None


def test_parameters_of_a_base_in_a_file_beside_are_read_from_the_source() -> None:
    assert {"beta", "keep_best"} <= set(signatures.parameters("defense", "trades"))
    assert (
        signatures.parameters("defense", "likelihood_flattening")["steps"]["default"] == "3"
    )  # its own, not the base's
    assert signatures.declared("defense", "trades")["trains"] is True
    assert [said.startswith("min_theta") for said in signatures.docstrings("defense", "trades")] == [True, False, False]


def test_files_are_short() -> None:
    long = {
        path.relative_to(ROOT).as_posix()
        for folder in (HARNESS, *FOLDERS)
        for path in (ROOT / folder).rglob("*.py")
        if len(path.read_text(encoding="utf-8").splitlines()) > LONGEST
    }
    assert not long, f"over {LONGEST} lines; split it by idea"
