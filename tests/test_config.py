"""Bad configuration: exit code 2, one line that begins with the place, no traceback, nothing computed."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from siegebench.zoo.cifar_resnet import ResNet

from siegebench import cli, registry
from siegebench.bundled import suite_path
from siegebench.config import load_suite
from siegebench.errors import ConfigError, SiegeError
from siegebench.plan import plan
from siegebench.yamlmarks import Document
from tests import runs
from tests.refusals import CASES, GOOD


@pytest.fixture(scope="module", autouse=True)
def _outsider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.delenv("SIEGEBENCH_DATA", raising=False)
    with runs.known(tmp_path_factory.mktemp("site"), patch):
        yield


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`siegebench run` must refuse; its one line."""

    def call(*words: object) -> str:
        store = tmp_path / "results"
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["siegebench", "run", *map(str, words), "--executor", "serial"])
        monkeypatch.setattr("siegebench.evaluation.evaluate", lambda *_, **__: pytest.fail("a cell was computed"))
        monkeypatch.setattr("siegebench.train.train", lambda *_, **__: pytest.fail("a model was trained"))
        with pytest.raises(SystemExit) as left:
            cli.main()
        out, err = capsys.readouterr()
        assert left.value.code == 2, err
        assert out == ""
        assert err.count("\n") == 1, err
        assert err.endswith("\n")
        assert "Traceback" not in err
        assert len(err) < 700, err
        assert not store.exists()
        return err

    return call


def test_the_suite_that_the_others_break_is_good(tmp_path: Path) -> None:
    file = tmp_path / "good.yaml"
    file.write_text(GOOD)
    cells = plan(load_suite(str(file))).cells
    assert {c.track for c in cells} == {"white_box", "query", "backdoor", "input_detection"}


@pytest.mark.parametrize("name", CASES)
def test_is_refused(name: str, refused: Callable[..., str], tmp_path: Path) -> None:
    old, new, words, *rest = CASES[name]
    assert GOOD.count(old) >= 1, "the case changes nothing"
    file = tmp_path / "small.yaml"
    file.write_text(GOOD.replace(old, new, 1))
    line = rest[0] if rest else 1 + GOOD[: GOOD.index(old)].count("\n")
    said = refused(file)
    assert words in said
    assert re.match(rf"{re.escape(str(file))}:{line}(:\d+)?: ", said), said


def test_enough_kinds_are_tried() -> None:
    assert len(CASES) >= 34


def test_the_column_is_that_of_the_fault(refused: Callable[..., str], tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(GOOD.replace("steps: 5", "steps: 0"))
    assert refused(file).startswith(f"{file}:7:33: ")
    assert GOOD.splitlines()[6][32:].startswith("steps")


# ---------------------------------------------------------------------------------------------------- files and words


def test_a_folder_does_not_hide_a_suite_that_comes_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "quickstart").mkdir()
    monkeypatch.chdir(tmp_path)
    assert suite_path("quickstart").name == "quickstart.yaml"


def test_files_that_are_none(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "gone.yaml: no such file or bundled suite. " in refused("gone.yaml")
    assert "qickstart: no such file or bundled suite. Did you mean quickstart?" in refused("qickstart")
    (tmp_path / "folder.yaml").mkdir()
    assert "folder.yaml: is a folder; expected a YAML file" in refused("folder.yaml")
    (tmp_path / "latin.yaml").write_bytes("suite: small\nsummary: naïve\n".encode("latin-1"))
    assert refused("latin.yaml") == "latin.yaml:2: byte 0xef is not UTF-8 text\n"
    (tmp_path / "utf16.yaml").write_text(GOOD, encoding="utf-16")
    assert "utf16.yaml:1: byte 0xff is not UTF-8 text" in refused("utf16.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\x00" * 64)
    assert "binary.yaml:1: not valid YAML" in refused("binary.yaml")


def test_a_bomb_of_aliases(refused: Callable[..., str], tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 20)]
    (tmp_path / "bomb.yaml").write_text("\n".join(lines))
    assert "more than 100,000 values" in refused("bomb.yaml")


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("boards.0.sedes=[1]", "unknown key 'sedes'. Did you mean seeds?"),
        ("boards.0.attaks=[pgd]", "no 'attaks' here. Did you mean attacks?"),
        ("bords.0.seeds=[1]", "no 'bords' here. Did you mean boards?"),
        ("boards.9.seeds=[1]", "boards has 4 items; expected a number below that, found '9'"),
        ("boards.first.seeds=[1]", "expected a number below that, found 'first'"),
        ("suite.name=x", "suite: Input should be a valid string"),
        ("data.count.all=x", "data.count has no parts"),
        ("boards.0.seeds", "expected PATH=VALUE, as in --set boards.0.seeds=[0,1]"),
        ("=3", "expected PATH=VALUE"),
        ("boards.0.seeds=[0", "not valid YAML"),
        ("seeds=[-1]", "greater than or equal to 0, found -1"),
        ("boards.0.attacks.0.stepz=3", "attack 'fgsm' has no parameter 'stepz'"),
        ("boards.0.attacks.1.steps=0", "greater than or equal to 1, found 0"),
        ("data.count=5000", "5000 images requested, it has 500"),
    ],
)
def test_overrides_that_do_not_fit(assignment: str, words: str, refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(GOOD)
    said = refused("small.yaml", "--set", assignment)
    assert said.startswith(f"--set {assignment}:"), said
    assert words in said


@pytest.mark.parametrize(
    ("suite", "assignment", "words"),
    [
        ("privacy_digits", "boards.0.client={bacth: 2}", "unknown key 'bacth'. Did you mean batch?"),
        ("privacy_digits", "boards.0.client=3", "boards.0.client: expected a mapping, found 3"),
        ("extraction_digits", "boards.0.pool={set: digits, splt: train}", "unknown key 'splt'. Did you mean split?"),
        ("extraction_digits", "boards.0.threats=[{norm: linf, epz: 1}]", "unknown key 'epz'. Did you mean eps?"),
        ("open_set_gtsrb", "boards.0.inputs=[{kind: corrupted, severitis: [1]}]", "unknown key 'severitis'. Did"),
    ],
)
def test_keys_below_a_key_of_a_board(suite: str, assignment: str, words: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        load_suite(suite, [assignment])
    assert str(refusal.value).startswith(f"--set {assignment}: {words}")


def test_overrides_that_fit(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(GOOD)
    suite = load_suite(str(file), ["boards.0.seeds=[3]", "data.count=20"])
    assert suite.boards[0].seeds == [3]
    assert suite.data is not None
    assert suite.data.count == 20
    named = load_suite(str(file), ["boards.1.attacks.0.queries=7"])
    assert named.boards[1].attacks == [{"name": "square", "queries": 7}]  # type: ignore[union-attr]


def test_merge_keys_may_be_overridden(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    common = (
        "  - &common\n    track: query\n    attacks: [square]\n    threats: [{norm: l2, eps: 1}]\n    queries: 10\n"
    )
    head = GOOD[: GOOD.index("boards:")] + "boards:\n"
    file.write_text(head + common + "  - {<<: *common, queries: 20}\n")
    suite = load_suite(str(file))
    assert [b.queries for b in suite.boards] == [10, 20]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--device", "cuda:99"], "CUDA devices are visible; use --device cpu"),
        (["--device", "gpu"], "device 'gpu'"),
        (["--dtype", "float16"], "float32 or float64"),
        (["--wandb", "on"], "the mode of W&B: expected offline or online, found 'on'"),
        (["--store", "small.yaml"], "is a file; expected a folder"),
        (["--store", "small.yaml/rows"], "is a file; expected a folder"),
    ],
)
def test_options_that_do_not_fit(words: list[str], expected: str, refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(GOOD)
    assert expected in refused("small.yaml", *words)


# -------------------------------------------------------------------------------------------------------- checkpoints


class _Evil:
    """Unpickling this would run a command."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def _checkpoint(kind: str, folder: Path) -> Path:
    path = folder / f"{kind}.pth"
    state = ResNet(20, 100 if kind == "classes" else 10).state_dict()
    if kind == "nan":
        state["layer1.0.conv1.weight"][0, 0, 0, 0] = float("nan")
    if kind == "other":
        state = {f"{k}_other": v for k, v in state.items()}
    if kind == "evil":
        state["linear.bias"] = _Evil(folder / "ran")  # type: ignore[assignment]
    torch.save([1, 2] if kind == "list" else state, path)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:5000])
    if kind == "empty":
        path.write_bytes(b"")
    if kind == "safe":
        path = path.with_suffix(".safetensors")
        path.write_bytes(b"\x10" * 100)
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("classes", "weights for 100 classes, the data has 10"),
        ("nan", "layer1.0.conv1.weight contains NaN or infinite values"),
        ("truncated", "damaged, or not written by torch.save"),
        ("empty", "an empty file"),
        ("evil", "somebody put code into this file. Nothing was run"),
        ("list", "contains no tensors"),
        ("other", "weights of another architecture"),
        ("safe", "not a readable safetensors file"),
    ],
)
def test_checkpoints_that_are_refused(kind: str, words: str, refused: Callable[..., str], tmp_path: Path) -> None:
    path = _checkpoint(kind, tmp_path)
    file = tmp_path / "small.yaml"
    file.write_text(GOOD.replace("[outsider/tiny]", f"[outsider/tiny, {{name: cifar_resnet20, checkpoint: {path}}}]"))
    said = refused(file)
    assert said.startswith(f"{file}:3:25: {path}: "), said
    assert words in said
    assert not (tmp_path / "ran").exists(), "the pickle was executed"


def test_a_good_checkpoint_is_taken(tmp_path: Path) -> None:
    path = _checkpoint("good", tmp_path)
    file = tmp_path / "small.yaml"
    file.write_text(GOOD.replace("[outsider/tiny]", f"[{{name: cifar_resnet20, checkpoint: {path}}}]"))
    cells = plan(load_suite(str(file))).cells
    assert all(len(c.model["sha256"]) == 64 for c in cells)
    assert str(tmp_path) not in str([c.as_dict() for c in cells]), "a place of this machine is part of a key"


# ----------------------------------------------------------------------------------------------------- from Python


def test_places_are_only_put_once_and_the_kind_of_error_stays(tmp_path: Path) -> None:
    from siegebench.errors import DataError

    file = tmp_path / "small.yaml"
    file.write_text(GOOD.replace("count: 40", "count: 4000"))
    suite = load_suite(str(file))
    with pytest.raises(DataError) as error:
        plan(suite)
    assert str(error.value).count(str(file)) == 1


def test_a_model_that_raises_anything_is_an_error_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(GOOD)
    suite = load_suite(str(file))

    def build(*_: object, **__: object) -> None:
        raise AttributeError("no such layer")

    monkeypatch.setattr(registry.entry_class("model", runs.MODEL), "build", build)
    with pytest.raises(
        SiegeError, match=r":3:10: model 'outsider/tiny' cannot be built: AttributeError: no such layer"
    ):
        plan(suite)


def test_a_document_finds_the_nearest_place() -> None:
    document = Document("a:\n  - b: {c: 1}\n  - [x, y]\n", "f.yaml")
    assert document.where(("a", 0, "b", "c")) == "f.yaml:2:9"
    assert document.where(("a", 1, 1)) == "f.yaml:3:9"
    assert document.where(("a", 0, "b", "gone")) == "f.yaml:2:5"
    assert document.where(()) == "f.yaml:1:1"
    document.override("a.0.b.c=2")
    assert document.data["a"][0]["b"]["c"] == 2
    assert document.where(("a", 0, "b", "c")) == "--set a.0.b.c=2"
    with pytest.raises(ConfigError, match="a has 2 items"):
        document.override("a.7=3")


def test_keys_of_earlier_versions_are_read_and_renamed(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    text = (
        "suite: s\ndata: {set: digits, count: 8}\nmodels: [byobnet_tiny]\nboards:\n  - track: white_box\n"
        "    attacks: [fgsm]\n    threats: [{norm: linf, eps: 8/255}]\n    checks: [KNOWN]\n"
    )
    file.write_text(text.replace("KNOWN", "flatness"))
    with pytest.warns(FutureWarning, match=r"s\.yaml:8:5: the key 'checks' is called 'measures' now"):
        suite = load_suite(str(file))
    assert suite.boards[0].measures == ["flatness"]
    file.write_text(text.replace("KNOWN", "flatnes"))
    with pytest.warns(FutureWarning), pytest.raises(ConfigError, match=r"s\.yaml:8:\d+: unknown measure 'flatnes'"):
        load_suite(str(file))
