"""`siegebench scan`, and published networks on the boards of backdoors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from siegebench import api, cli, registry
from siegebench.cells import Result
from siegebench.config import load_suite
from siegebench.errors import ConfigError
from siegebench.reporting import report
from siegebench.scanning import model_detectors, suite_of
from siegebench.types import BackdoorAttack, ModelSource
from siegebench.workspace import Settings
from tests import runs, victims
from tests.outsider.tiny import net

CLEANSE = {"name": "neural_cleanse", "steps": 5, "batch": 4}


@pytest.fixture(scope="module", autouse=True)
def _outsider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    with runs.known(tmp_path_factory.mktemp("site"), patch):
        yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a tiny network for digits, with random weights."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "net.safetensors"
    save_file(net(10, api.load_data("digits", count=1).size).state_dict(), file)
    return file


def published(weights: Path, **known: Any) -> dict[str, Any]:
    return {"model": {"name": runs.MODEL, "checkpoint": str(weights)}, **known}


def computed(folder: Path, *boards: dict[str, Any]) -> list[Result]:
    file = runs.suite(folder / "s.yaml", *boards, models=None)
    return api.run(load_suite(str(file)), Settings(root=str(folder / "store"), threads=1)).results


def test_published_networks_stand_on_every_board_of_backdoors(tmp_path: Path, weights: Path) -> None:
    known = published(weights, backdoor={"name": "badnets", "target": 3})
    board = {"models": [], "published": [known]}
    rows = computed(
        tmp_path,
        {"track": "backdoor", "defenses": ["none", {"name": "fine_tuning", "epochs": 1}, "nab"], **board},
        {"track": "input_detection", "detectors": ["strip"], **board},
        {"track": "model_detection", "detectors": [CLEANSE], **board, "published": [known, published(weights)]},
    )
    status = {(r.cell.track, next(iter((r.cell.defense or r.cell.detector or {}).values()))): r.status for r in rows}
    assert status["backdoor", "none"] == status["backdoor", "fine_tuning"] == "ok"
    assert status["backdoor", "nab"] == "not_applicable"  # it needs the training set
    assert status["input_detection", "strip"] == "ok"
    judged = {r.value("truth"): r for r in rows if r.cell.track == "model_detection"}
    assert set(judged) == {0.0, 1.0}
    assert all(r.value("ca") is not None for r in judged.values())
    assert all("poisoned" not in r.counts for r in rows)
    page = report(rows, "html", store=tmp_path / "store")
    assert page.count('alt="picture 9 of this row:') == 2  # the inverted triggers of both networks, by class
    assert 'alt="picture 9' not in report(rows, "html")


def test_a_network_without_weights_is_not_published(tmp_path: Path) -> None:
    board = {"track": "model_detection", "models": [], "detectors": [CLEANSE], "published": [{"model": "small_vgg"}]}
    with pytest.raises(ConfigError, match=r"'small_vgg' has no weights; give its `checkpoint: FILE`"):
        load_suite(str(runs.suite(tmp_path / "s.yaml", board)))


def test_scan_judges_one_network_beside_clean_ones(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["scan", str(weights), "--model", runs.MODEL, "--data", "digits", "--detector", json.dumps(CLEANSE)]
    words += ["--clean", "1", "--count", "50", "--slots", "1", "--threads", "1", "--store", str(tmp_path / "store")]

    def said(*more: str) -> str:
        monkeypatch.setattr("sys.argv", ["siegebench", *words, *more])
        with pytest.raises(SystemExit) as end:
            cli.main()
        told = capsys.readouterr()
        assert not end.value.code, told.err
        return told.out

    first, _, heads, line = said().splitlines()
    assert first.startswith("net.safetensors: clean accuracy ")
    assert heads.split()[:4] == ["detector", "verdict", "class", "score"]
    assert line.split()[0] == "neural_cleanse"
    assert " of 1" in line
    (finding,) = json.loads(said("--json"))["findings"]
    assert finding["clean"] == 1
    assert finding["status"] == "ok"
    assert finding["backdoored"] is (line.split()[1] == "backdoored")
    if finding["target"] is not None:
        assert Path(finding["trigger"]).is_file() or not finding["trigger"]


def test_scan_asks_every_detector_of_models() -> None:
    assert "neural_cleanse" in model_detectors()
    assert not {"strip", "activation_clustering", "mahalanobis"} & set(model_detectors())


def test_scan_refuses_a_second_checkpoint(weights: Path) -> None:
    with pytest.raises(ConfigError, match="checkpoint of its own"):
        suite_of(
            str(weights),
            {"name": "small_vgg", "checkpoint": "x"},
            "digits",
            count=9,
            detectors=[CLEANSE],
            clean=0,
            seed=0,
        )


def test_clean_networks_are_trained_also_where_the_entry_has_published_weights(weights: Path) -> None:
    options: dict[str, Any] = {"count": 9, "detectors": [CLEANSE], "seed": 0}
    suite = suite_of(str(weights), "cifar_resnet20", "digits", clean=2, **options)
    (twin,) = suite.boards[0].models or ()
    assert not registry.build(ModelSource, twin).pretrained()
    with pytest.raises(ConfigError, match="no clean network can be trained"):
        suite_of(str(weights), "timm/resnet18.a1_in1k", "digits", clean=2, **options)
    suite_of(str(weights), "timm/resnet18.a1_in1k", "digits", clean=0, **options)


# ------------------------------------------------------------------------------------------------ triggers as pictures


def test_pictures_are_pasted_through_a_mask_or_added(tmp_path: Path) -> None:
    x = torch.full((2, 3, 4, 4), 0.25)
    colours = np.zeros((4, 4, 3), np.uint8)
    colours[0, 1] = [255, 0, 51]
    Image.fromarray(colours).save(tmp_path / "p.png")
    np.save(tmp_path / "m.npy", np.eye(4, dtype=np.float32)[None].repeat(3, 0))
    np.save(tmp_path / "d.npy", np.full((4, 4), -0.5, np.float32))

    def stamped(**parameters: Any) -> torch.Tensor:
        return registry.build(BackdoorAttack, {"name": "picture", **parameters}).trigger(x, victims.ONE)

    pasted = stamped(picture=str(tmp_path / "p.png"))
    torch.testing.assert_close(pasted[0, :, 0, 1], torch.tensor([1, 0, 0.2]))
    assert torch.equal(pasted[0, :, 1:], x[0, :, 1:])
    masked = stamped(picture=str(tmp_path / "p.png"), mask=str(tmp_path / "m.npy"))
    assert torch.equal(masked[0, 0], 0.25 * (1 - torch.eye(4)))
    added = stamped(picture=str(tmp_path / "p.png"), mode="add")
    torch.testing.assert_close(added[0, :, 0, 1], torch.tensor([1, 0.25, 0.45]))
    assert float(stamped(picture=str(tmp_path / "d.npy"), mode="add").max()) == 0


def test_another_picture_is_another_key(tmp_path: Path) -> None:
    built = []
    for level in (10, 20):
        Image.fromarray(np.full((4, 4), level, np.uint8)).save(tmp_path / "p.png")
        built.append(registry.build(BackdoorAttack, {"name": "picture", "picture": str(tmp_path / "p.png")}).identity())
    assert built[0] != built[1]


# ------------------------------------------------------------------------------------------------ networks of one's own

NET = """
import torch
def make(width=4):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, width), torch.nn.Linear(width, 5))
"""


def test_a_network_from_a_python_file(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    spec = {"name": "python_file", "file": str(tmp_path / "net.py"), "make": "make", "args": {"width": 7}}
    source = registry.build(ModelSource, spec)
    model = source.build(num_classes=5, size=8)
    torch.save(model.net.state_dict(), tmp_path / "w.pth")
    loaded = registry.build(ModelSource, {**spec, "checkpoint": str(tmp_path / "w.pth")})
    x = torch.rand(3, 3, 8, 8)
    torch.testing.assert_close(loaded.build(num_classes=5, size=8)(x), model(x))
    assert loaded.pretrained()
    assert not source.pretrained()
    before = source.identity()
    (tmp_path / "net.py").write_text(NET + "\n")
    assert source.identity() != before  # other code, other key
