"""The Python interface: any module can be attacked and evaluated, and is left as it was."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import siegebench as sb
from siegebench import api
from siegebench.cells import Cell
from siegebench.errors import ConfigError, DataError, ModelError
from siegebench.workspace import Settings
from tests import kit, runs


@pytest.fixture(scope="module", autouse=True)
def _outsider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.delenv("SIEGEBENCH_DATA", raising=False)
    with runs.known(tmp_path_factory.mktemp("site"), patch):
        yield


class Net(nn.Module):
    """Batch norm, dropout and a frozen layer: three things that a careless caller changes."""

    def __init__(self, classes: int = 10, bend: Any = F.relu) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv = nn.Conv2d(3, 8, 3, 2, 1)
            self.norm = nn.BatchNorm2d(8)
            self.drop = nn.Dropout(0.5)
            self.head = nn.Linear(8 * 16, classes)
        self.bend = bend
        self.conv.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.head(self.drop(F.adaptive_avg_pool2d(self.bend(self.norm(self.conv(x))), 4).flatten(1)))
        return z


def state(model: nn.Module) -> Any:
    return (
        {k: v.clone() for k, v in model.state_dict().items()},
        [m.training for m in model.modules()],
        [(p.requires_grad, p.device, p.dtype, id(p)) for p in model.parameters()],
    )


def unchanged(before: Any, model: nn.Module) -> bool:
    after = state(model)
    return before[1:] == after[1:] and all(torch.equal(v, after[0][k]) for k, v in before[0].items())


def test_names_of_the_package_exist_and_stay(tmp_path: Path) -> None:
    for name in sb.__all__:
        assert callable(getattr(sb, name)), name
    # a module of the same name, once imported, would take a function's place
    import siegebench.evaluation  # noqa: F401

    assert sb.evaluate is api.evaluate
    assert sb.run is api.run
    with pytest.raises(AttributeError, match="no attribute 'evalute'"):
        sb.evalute  # noqa: B018


def test_no_module_of_the_package_is_called_like_a_public_function() -> None:
    modules = {p.stem for p in (runs.ROOT / "siegebench").glob("*.py")}
    modules |= {p.parent.name for p in runs.ROOT.glob("*/__init__.py")}
    assert not modules & set(sb.__all__)


def test_importing_the_package_is_light() -> None:
    code = "import siegebench, sys; assert 'torch' not in sys.modules; assert 'yaml' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=runs.ROOT)


# -------------------------------------------------------------------------------------------------------------- attack


def test_an_attack_is_a_function_of_model_images_and_labels() -> None:
    model = kit.Linear(size=8)
    x, y = kit.grey_images(12), torch.zeros(12, dtype=torch.long)
    y = model(x).argmax(1)
    x_adv = sb.attack("pgd", steps=5)(model, x, y, norm="linf", eps="8/255")
    assert x_adv.shape == x.shape
    assert float((x_adv - x).abs().max()) <= 8 / 255 + 1e-6
    assert bool((kit.Linear(size=8)(x_adv).argmax(1) != y).float().mean() > 0.5)
    assert torch.equal(x_adv, sb.attack("pgd", steps=5)(model, x, y, norm="linf", eps=8 / 255)), "not repeatable"
    other = sb.attack("pgd", steps=5)(model, x, y, norm="linf", eps="8/255", seed=1)
    assert not torch.equal(x_adv, other)
    near = sb.attack("pgd", steps=5)(model, x, y, norm="l2", eps=0.5)
    assert float((near - x).flatten(1).norm(dim=1).max()) <= 0.5 + 1e-5


def test_an_attack_leaves_the_model_as_it_was() -> None:
    model = Net().train()
    model.norm.eval()
    before = state(model)
    x = kit.grey_images(6, size=16)
    sb.attack("pgd", steps=2)(model, x, torch.arange(6))
    assert unchanged(before, model)
    with pytest.raises(ConfigError):
        sb.attack("pgd", steps=2)(model, x, torch.arange(6), norm="l7")  # type: ignore[arg-type]
    assert unchanged(before, model)


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2, dtype=torch.long), "expected float"),
        (torch.full((2, 3, 8, 8), 200.0), torch.zeros(2, dtype=torch.long), "divide by 255"),
        (torch.full((2, 3, 8, 8), -0.5), torch.zeros(2, dtype=torch.long), "found -0.5 to -0.5"),
        (torch.full((2, 3, 8, 8), torch.nan), torch.zeros(2, dtype=torch.long), "expected pixels"),
        (torch.zeros(3, 8, 8), torch.zeros(1, dtype=torch.long), "found torch.float32 (3, 8, 8)"),
        (torch.zeros(2, 3, 8, 8), torch.zeros(3, dtype=torch.long), "expected 2 integers, found torch.int64 (3,)"),
        (torch.zeros(2, 3, 8, 8), torch.zeros(2, 10), "expected 2 integers"),
        (torch.zeros(2, 3, 8, 8), torch.zeros(2), "expected 2 integers, found torch.float32"),
    ],
)
def test_images_that_are_none_are_refused(x: Tensor, y: Tensor, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        sb.attack("pgd")(kit.Linear(), x, y)
    assert words in str(error.value)


def test_wrong_names_and_parameters_are_refused_before_a_model_is_seen() -> None:
    with pytest.raises(ConfigError, match=r"unknown attack 'pdg'\. Did you mean pgd\?"):
        sb.attack("pdg")
    with pytest.raises(ConfigError, match="has no parameter 'restrats'"):
        sb.attack("pgd", restrats=3)
    with pytest.raises(ConfigError, match="eps"):
        sb.attack("pgd")(kit.Linear(), kit.grey_images(2), torch.zeros(2, dtype=torch.long), eps=80)


# ------------------------------------------------------------------------------------------------------ data and models


def test_data_come_as_a_suite_would_see_them() -> None:
    data = sb.load_data("digits", count=40)
    assert len(data) == 40
    assert data.labels.bincount().tolist() == [4] * 10
    assert float(data.pixels().max()) <= 1
    again = sb.load_data("digits", count=40)
    assert again.digest == data.digest
    assert len(sb.load_data("digits", split="train")) == 1297
    with pytest.raises(DataError, match="it has 500"):
        sb.load_data("digits", count=501)
    with pytest.raises(ConfigError, match="Did you mean digits"):
        sb.load_data("digit")
    with pytest.raises(DataError, match="SIEGEBENCH_DATA"):
        sb.load_data("gtsrb")


def test_models_come_by_name() -> None:
    model = sb.load_model("outsider/tiny", num_classes=10, size=32)
    assert isinstance(model, sb.Classifier)
    assert not model.training
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    with pytest.raises(ConfigError, match="Did you mean outsider/tiny"):
        sb.load_model("outsider/tinny")


# ------------------------------------------------------------------------------------------------------------ evaluate


def evaluate(model: nn.Module, folder: Path, **more: Any) -> api.Outcome:
    board = runs.board(attacks=["fgsm", {"name": "pgd", "steps": 2}], defenses=["none", "outsider/noise"])
    file = runs.suite(folder / "s.yaml", board, models=["cifar_resnet20"])  # its weights are not here, and not needed
    text = file.read_text().replace("cifar_resnet20", "{name: cifar_resnet20, checkpoint: null}")
    file.write_text(text)
    return sb.evaluate(model, str(file), settings=Settings(root=str(folder / "store")), **more)


def test_any_module_can_be_evaluated_and_is_left_alone(tmp_path: Path) -> None:
    model = Net().train()
    before = state(model)
    outcome = evaluate(model, tmp_path, name="mine")
    assert outcome.ended == {"ok": 7}
    assert unchanged(before, model)
    assert {r.cell.labels["model"] for r in outcome.results} == {"mine"}
    assert {r.cell.labels["defense"] for r in outcome.results} == {"none", "outsider/noise"}
    assert evaluate(model, tmp_path, name="mine").ended == {"cached": 7}, "the same model is not computed again"
    assert sb.evaluate is api.evaluate
    # other weights, another name, the same weights under other code: other cells
    other = Net()
    with torch.no_grad():
        other.head.bias[0] += 1
    assert evaluate(other, tmp_path, name="mine").ended == {"ok": 7}
    assert evaluate(model, tmp_path, name="yours").ended == {"ok": 7}
    assert evaluate(Net(bend=torch.tanh), tmp_path, name="mine").ended == {"ok": 7}
    assert len(runs.numbers(tmp_path / "store")) == 28


class Rounds(Net):
    """Equal weights, and equal answers on 8-bit images."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x * 255).round() / 255)


def test_equal_weights_under_other_code_get_no_stored_number(tmp_path: Path) -> None:
    with torch.inference_mode():  # as in a test loop: there is no gradient outside of the call
        inside = evaluate(Net(), tmp_path)
    assert inside.ended == {"ok": 7}
    assert evaluate(Net(), tmp_path).ended == {"cached": 7}
    assert [r for r in inside.results if r.cell.attack and r.counts["backwards"] > 0], "the attack had no gradient"
    assert "blind_attack" not in {f["id"] for r in inside.results for f in r.flags}
    assert evaluate(Rounds(), tmp_path).ended == {"ok": 7}


def test_what_is_evaluated_is_what_the_model_does(tmp_path: Path) -> None:
    """The row of the undefended model says what plain code finds."""
    model = Net().eval()
    data = sb.load_data("digits", count=40)
    right = (model(data.pixels()).argmax(1) == data.labels).float().mean()
    seen: list[tuple[Cell, str]] = []
    outcome = evaluate(sb.Network(model, num_classes=10), tmp_path, report=lambda c, s: seen.append((c, s)))
    rows = [r for r in outcome.results if r.cell.attack and r.cell.labels["defense"] == "none"]
    assert len(rows) == 2
    for row in rows:
        assert row.value("clean_acc") == pytest.approx(float(right))
    assert [s for _, s in seen] == ["started", "ok"] * 7
    text = sb.report(outcome.results)
    assert "model" in text
    assert sb.report(tmp_path / "store") == text


def test_models_that_do_not_fit_are_refused_before_anything_is_computed(tmp_path: Path) -> None:
    broken = Net()
    with torch.no_grad():
        broken.head.weight[0, 0] = torch.nan
    for model, words in (
        (Net(classes=7), "the model has 7 classes, digits test has 10"),
        (nn.Linear(10, 10), "digits test: the model fails on images (16, 3, 32, 32)"),
        (broken, "NaN or infinite logits"),
    ):
        with pytest.raises(ModelError) as error:
            evaluate(model, tmp_path)
        assert words in str(error.value)
    with pytest.raises(ModelError, match="has 12 classes"):
        evaluate(Net(), tmp_path, num_classes=12)
    with pytest.raises(ConfigError, match="no board of the tracks query"):
        evaluate(Net(), tmp_path, tracks=("query",))
    assert not (tmp_path / "store").exists()


def test_run_takes_a_file_and_overrides(tmp_path: Path) -> None:
    file = runs.suite(tmp_path / "s.yaml")
    outcome = sb.run(
        str(file), Settings(root=str(tmp_path / "store")), overrides=["data.count=20", "boards.0.seeds=[0,1]"]
    )
    assert outcome.ended == {"ok": 4}
    assert {r.cell.data["count"] for r in outcome.results} == {20}
    assert {r.cell.seed for r in outcome.results} == {0, 1}
    assert outcome.failed == 0


def test_a_module_that_cannot_be_copied_is_attacked_as_it_is() -> None:
    net = kit.small_cnn().eval()
    x = kit.grey_images(4)
    y = net(x).argmax(dim=1)
    expected = sb.attack("pgd", steps=3)(net, x, y, eps="8/255")
    net.lock = threading.Lock()  # type: ignore[assignment]
    torch.testing.assert_close(sb.attack("pgd", steps=3)(net, x, y, eps="8/255"), expected, atol=1e-5, rtol=0)
