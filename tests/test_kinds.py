"""Kinds of data: images of any shape go through every track, other kinds through the same evaluator or are refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from siegebench import api, direct, ops, registry
from siegebench.cells import Result
from siegebench.classifier import Ensemble, Network, Wrapped
from siegebench.config import load_suite
from siegebench.data import EVENTS, IMAGE, KINDS, PLANAR, SEQUENCE, ImageSet, Kind
from siegebench.draws import Draws
from siegebench.errors import ConfigError, ContractError, DataError, ModelError
from siegebench.oracle import Oracle
from siegebench.plan import plan
from siegebench.testing import CLAUSES, specimens
from siegebench.threat import ThreatModel
from siegebench.train import augmented
from siegebench.types import Attack
from siegebench.workspace import Settings
from tests import kit, runs
from tests.outsider.planted import WAVE


@dataclass(frozen=True, kw_only=True)
class Add(Attack):
    """The same number everywhere."""

    by: float

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
        return x + self.by


@pytest.fixture(autouse=True)
def outsider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    with runs.known(tmp_path / "site", monkeypatch):
        yield


def suite(folder: Path, data: str, *boards: dict[str, Any]) -> Path:
    tiny = {"name": runs.MODEL, "recipe": {"epochs": 6, "batch": 16, "lr": 0.01, "augment": "none"}}
    return runs.suite(folder / "suite.yaml", *boards, data={"set": data, "count": 40}, models=[tiny])


def rows(folder: Path, path: Path) -> list[Result]:
    outcome = api.run(str(path), Settings(root=str(folder / "store"), device="cpu", threads=1))
    assert [r.error for r in outcome.results if r.status != "ok"] == []
    return outcome.results


# ---------------------------------------------------------------------------------------------------------- the kind


@pytest.mark.parametrize("kind", [*KINDS.values(), PLANAR, WAVE], ids=lambda kind: f"{kind.name}{kind.channels}")
def test_what_is_stored_comes_back(kind: Kind) -> None:
    top = kind.grid or 1
    stored = torch.linspace(0, top, 2 * kind.channels * 64).view(2, kind.channels, 8, 8)
    stored = stored if kind.dtype.is_floating_point else stored.round().to(kind.dtype)
    x = kind.load(stored)
    assert x.dtype == (kind.dtype if kind.whole else torch.float32)
    assert kind.inside(x).all()
    assert torch.equal(kind.store(x), stored)
    assert torch.equal(kind.load(kind.store(kind.load(stored, torch.float64)), torch.float32), x)


def test_a_box_has_no_room_for_nan() -> None:
    x = torch.full((4, 3, 2, 2), 0.5)
    x[0, 0, 0, 0], x[1, 2, 1, 1], x[2, 1, 0, 1] = float("nan"), 1.01, -0.01
    assert IMAGE.inside(x).tolist() == [False, False, False, True]
    assert IMAGE.inside(x, 0.02).tolist() == [False, True, True, True]


def test_a_set_is_refused_that_is_not_stored_as_its_kind() -> None:
    x, labels = torch.zeros(2, 3, 4, 4), torch.tensor([0, 1])
    with pytest.raises(DataError, match=r"toy: expected uint8 \[N, 3, H, W\], found torch.float32 \(2, 3, 4, 4\)"):
        ImageSet(x, labels, labels, 2, "toy")
    assert ImageSet(x, labels, labels, 2, "toy", kind=WAVE).size == 4
    with pytest.raises(DataError, match=r"expected float32 \[N, 3, H, W\], found torch.float32 \(2, 1, 4, 4\)"):
        ImageSet(x[:, :1], labels, labels, 2, "toy", kind=WAVE)


def test_l0_of_integers_counts_places() -> None:
    delta = torch.zeros(2, 1, 1, 8, dtype=torch.long)
    delta[0, 0, 0, :3], delta[1, 0, 0, 5] = torch.tensor([9, 7, 8]), 1
    assert ops.size(delta, "l0").tolist() == [3 / 8, 1 / 8]
    assert ops.project_ball(delta, "l0", 0.25)[0].flatten().tolist() == [9, 0, 8, 0, 0, 0, 0, 0]


def test_l0_counts_joints_in_frames_and_single_events() -> None:
    motion = torch.zeros(1, SEQUENCE.channels, 8, 5)
    motion[0, :, 3, 2], motion[0, 0, 4, 2] = 0.1, 0.2  # three coordinates of one joint, one of another
    assert ops.size(motion, "l0").tolist() == pytest.approx([2 / 40])
    strip = torch.zeros(1, EVENTS.channels, 2 * 3 * 4, 4)  # three frames of 4x4 pixels, two polarities each
    strip[0, 0, [0, 4], 1] = 1.0  # both polarities of one pixel in one frame
    assert ops.size(strip, "l0").tolist() == pytest.approx([2 / 96])


@pytest.mark.parametrize("name", ["pgd", "mifgsm", "uniform_noise"])
def test_an_attack_keeps_its_contract_on_sequences(name: str) -> None:
    with specimens.of_kind(SEQUENCE):
        case = specimens.Case("attack", registry.build("attack", name), data=SEQUENCE)
        for clause in CLAUSES["attack"]:
            clause(case)
    assert specimens.KIND == IMAGE


def test_images_alone_are_cropped() -> None:
    x, draws = torch.rand(3, 3, 8, 12), Draws(0, torch.arange(3))
    assert augmented(x, "crop_flip", draws, 0).shape == x.shape
    assert augmented(x, "none", draws, 0, WAVE) is x
    with pytest.raises(ModelError, match="augment: crop is for images, the data is wave; set `augment: none`"):
        augmented(x, "crop", draws, 0, WAVE)


def test_an_oracle_takes_its_box_from_the_model() -> None:
    wide = Kind("wide", torch.float32, channels=3, low=-0.5, high=0.5)
    model = kit.linear_model()
    assert Oracle(model, ThreatModel(), Draws(0, torch.arange(1))).kind == IMAGE
    model.kind = wide
    assert Wrapped(model).kind == Ensemble([model]).kind == wide
    x, y = torch.full((2, 3, 8, 8), -0.25), torch.tensor([0, 1])
    linf = ThreatModel(norm="linf", eps=0.9)
    kit.attack_with(Add(by=0.7), model, x, y, linf)
    with pytest.raises(ContractError, match=r"pixels in \[0.5500, 0.5500\], not in \[-0.5, 0.5\]"):
        kit.attack_with(Add(by=0.8), model, x, y, linf)
    with pytest.raises(ConfigError, match=r"expected pixels in \[-0.5, 0.5\], found 0.75 to 0.75$"):
        direct.attack("fgsm")(model, x + 1, y)


# ------------------------------------------------------------------------------------------- what a card says it takes


@pytest.mark.parametrize(
    ("slot", "spec", "message"),
    [
        ("attacks", "pgd", "attack 'pgd' takes image, sequence, the data is wave"),
        ("attacks", {"name": "eot", "attack": "outsider/step"}, "attack 'eot' takes image, sequence, the data is wave"),
        ("defenses", "jpeg", "defense 'jpeg' takes image, the data is wave"),
        ("measures", "masking", "measure 'masking' takes image, the data is wave"),
        ("models", "spiking_film", "model 'spiking_film' takes events, the data is wave"),
        ("attacks", "motion_no_box", "attack 'motion_no_box' takes sequence, the data is wave"),
        ("models", "spiking", "model 'spiking' takes image, the data is wave"),
        ("models", "cifar_resnet20", "model 'cifar_resnet20' takes image, the data is wave"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_line(tmp_path: Path, slot: str, spec: Any, message: str) -> None:
    threats = [{"norm": "linf", "eps": 0.1}]
    good = {"attacks": ["outsider/step"], "threats": threats, "measures": []}
    path = suite(tmp_path, "outsider/waves", {"track": "white_box", **good, slot: [spec]})
    lines = path.read_text().splitlines()
    name = spec if isinstance(spec, str) else spec["name"]
    line = next(i for i, text in enumerate(lines, 1) if text.strip().removeprefix("- ").endswith(name))
    with pytest.raises(ConfigError) as caught:
        plan(load_suite(str(path)))
    assert message in str(caught.value)
    assert f"suite.yaml:{line}" in str(caught.value)


def test_a_recipe_that_augments_is_refused_with_its_line(tmp_path: Path) -> None:
    board = {"track": "white_box", "attacks": ["outsider/step"], "threats": [{"norm": "linf", "eps": 0.1}]}
    path = runs.suite(
        tmp_path / "suite.yaml", board, data={"set": "outsider/waves", "count": 40},
        models=[{"name": runs.MODEL, "recipe": {"epochs": 6}}],
    )  # fmt: skip
    line = next(i for i, text in enumerate(path.read_text().splitlines(), 1) if "recipe" in text)
    with pytest.raises(
        ConfigError, match=rf"suite.yaml:{line}:\d+: .*recipe.augment: crop is for images, the data is wave"
    ):
        plan(load_suite(str(path)))


def test_the_default_measure_is_run_only_on_data_that_it_takes(tmp_path: Path) -> None:
    board = {"track": "white_box", "attacks": ["outsider/step"], "threats": [{"norm": "linf", "eps": 0.1}]}
    assert {cell.measure is None for cell in plan(load_suite(str(suite(tmp_path, "outsider/waves", board)))).cells} == {
        True
    }


def test_an_entry_inside_another_is_asked_too() -> None:
    spec = {"name": "eot", "attack": "outsider/step"}
    registry.check_takes(registry.build("attack", spec), "image")
    with pytest.raises(ConfigError, match="attack 'pgd' takes image, sequence, the data is text"):
        registry.check_takes(registry.build("attack", "pgd"), "text")
    registry.check_takes(registry.build("defense", "none"), "text")


# ---------------------------------------------------------------------------------------------------- whole small runs


def test_another_kind_goes_through_the_same_evaluator(tmp_path: Path) -> None:
    board = {"threats": [{"norm": "linf", "eps": 0.3}, {"norm": "l0", "eps": 0.2}], "attacks": ["outsider/step"]}
    path = suite(tmp_path, "outsider/waves", {"track": "white_box", "measures": ["outsider/quiet"], **board})
    found = rows(tmp_path, path)
    assert len(found) == 4
    for row in found:
        assert row.cell.data["kind"] == "wave"
        assert "robust_acc_8bit" not in row.metrics
    struck = [r for r in found if r.cell.attack]
    assert all(r.metrics["clean_acc"]["value"] > 0.9 for r in struck)
    assert min(r.metrics["robust_acc"]["value"] for r in struck) < 0.5


def test_sequences_and_events_go_through_the_boards_of_images(tmp_path: Path, call: runs.Call) -> None:
    t, phase = np.arange(72)[None, :, None, None], np.arange(28)[None, None, :, None]
    motions = np.concatenate([9000 * np.sin(speed * t[0] / 9 + phase[0]) * np.ones(3) for speed in (1, 3) * 4])
    np.savez(
        tmp_path / "motions.npz", positions=motions.astype(np.int16), starts=np.arange(9) * 72,
        classes=["slow", "fast"], labels=np.array([0, 1] * 4), test=np.arange(8) > 5,
    )  # fmt: skip
    pictures, labels = np.zeros((48, 8, 8), dtype=np.uint8), np.arange(48) % 2
    pictures[labels == 0, :, 4:], pictures[labels == 1, 4:] = 255, 255
    pictures[np.arange(48), np.arange(48) % 8, np.arange(48) // 8] ^= 128
    np.savez(
        tmp_path / "bars.npz", x_train=pictures[:40], y_train=labels[:40], x_test=pictures[40:], y_test=labels[40:]
    )
    films = {
        "name": "saccades",
        "set": {"name": "arrays", "file": str(tmp_path / "bars.npz")},
        "size": None,
        "frames": 3,
    }
    recipe = {"epochs": 4, "batch": 16, "lr": 0.02, "augment": "none"}
    no_box = {"name": "motion_no_box", "epochs": 1, "steps": 2, "centres": 4, "width": 8}
    skeletons = {"set": {"name": "cmu_mocap", "file": str(tmp_path / "motions.npz"), "frames": 16}, "count": 10}
    linf = [{"norm": "linf", "eps": 0.05}]
    path = runs.suite(
        tmp_path / "suite.yaml",
        {"track": "white_box", "attacks": ["fgsm"], "threats": linf,
         "measures": [{"name": "motion_change", "attack": "uniform_noise"}]},
        {"track": "transfer", "surrogates": [], "attacks": ["uniform_noise", no_box], "threats": linf},
        {"track": "white_box", "data": {"set": films}, "measures": [],
         "models": [{"name": "spiking_film", "steps": 3, "recipe": recipe}],
         "attacks": [{"name": "spike_gradient", "attack": {"name": "sda", "iterations": 8}}],
         "threats": [{"norm": "l0", "eps": 0.02}, {"norm": "l0", "eps": 1}]},
        data=skeletons, models=[{"name": "temporal_cnn", "width": 16, "recipe": recipe}],
    )  # fmt: skip
    found = rows(tmp_path, path)
    assert [row.cell.data["kind"] for row in found].count("events") == 2
    assert [row.cell.data["kind"] for row in found].count("sequence") == 4
    assert all(row.counts["attacked"] > 0 for row in found if row.cell.attack)
    near, far = sorted((r for r in found if r.cell.data["kind"] == "events"), key=lambda r: r.cell.threat["eps"])
    assert far.metrics["robust_acc"]["value"] < far.metrics["clean_acc"]["value"]
    assert near.metrics["robust_acc"]["value"] >= far.metrics["robust_acc"]["value"]
    assert near.metrics["median_distance"] == far.metrics["median_distance"]
    code, _, said = call(
        "report", "--store", str(tmp_path / "store"), "--format", "html", "--out", str(tmp_path / "p.html")
    )
    assert (code, said.count("rror")) == (0, 0)
    page = (tmp_path / "p.html").read_text()
    assert all(word in page for word in ("motion_no_box", "sda", "temporal_cnn", "spiking_film"))


def test_images_that_are_not_square_go_through_every_track(tmp_path: Path) -> None:
    threats = [{"norm": "linf", "eps": "64/255"}]
    poison = [{"name": "badnets", "side": 6, "rate": 0.2}]
    path = suite(
        tmp_path,
        "outsider/planted",
        {"track": "white_box", "threats": threats, "attacks": ["fgsm", {"name": "pgd", "steps": 3}], "measures": []},
        {"track": "query", "threats": threats, "attacks": ["square"], "queries": 30},
        {"track": "patch", "threats": [{"norm": "l0", "eps": 0.1}], "attacks": [{"name": "loap", "steps": 3}]},
        {"track": "transfer", "threats": threats, "attacks": ["fgsm"], "surrogates": ["timm/test_resnet"]},
        {"track": "backdoor", "backdoors": poison, "defenses": ["none", {"name": "fine_tuning", "epochs": 2}]},
        {"track": "input_detection", "backdoors": poison, "detectors": ["strip", "activation_clustering"]},
        {
            "track": "model_detection",
            "backdoors": poison,
            "detectors": [{"name": "neural_cleanse", "steps": 4}],
            "clean": 1,
        },
    )
    found = rows(tmp_path, path)
    assert {r.cell.track for r in found} == {
        "white_box", "query", "patch", "transfer", "backdoor", "input_detection", "model_detection",
    }  # fmt: skip
    by = {(r.cell.track, (r.cell.attack or {}).get("name")): r for r in found}
    assert by["white_box", "pgd"].metrics["clean_acc"]["value"] > 0.9
    assert by["white_box", "pgd"].metrics["robust_acc"]["value"] < 0.9
    assert by["backdoor", None].metrics["ca"]["value"] > 0.9
    assert all("kind" not in r.cell.data for r in found)


def test_networks_of_the_zoo_take_images_that_are_not_square() -> None:
    x = torch.rand(2, 3, 32, 48)
    for spec in ({"name": "cifar_resnet20", "checkpoint": None}, "timm/test_vit", "timm/test_resnet", "byobnet_tiny"):
        model = registry.build("model", spec).build(num_classes=7, size=(32, 48))  # type: ignore[attr-defined]
        assert isinstance(model, Network)
        assert model(x).shape == (2, 7)
        assert model.card.preprocessing.get("input_size", (32, 48)) == (32, 48)
