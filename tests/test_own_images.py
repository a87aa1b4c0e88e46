"""Images and labels passed to `sb.evaluate`: checked, named by their content, never rounded, never trained on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import siegebench as sb
from siegebench import api, given
from siegebench.config import load_suite
from siegebench.errors import ConfigError, ModelError
from siegebench.plan import plan
from siegebench.workspace import Settings
from tests import kit, runs


@pytest.fixture(scope="module", autouse=True)
def _outsider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    with runs.known(tmp_path_factory.mktemp("site"), patch):
        yield


def images(n: int = 12, channels: int = 3) -> tuple[Tensor, Tensor]:
    """Images off the 8-bit grid, with the labels that `kit.Linear` gives them."""
    x = kit.grey_images(n, size=8)
    y = kit.Linear(classes=4)(x).argmax(1)
    return x[:, :channels], y


def evaluate(folder: Path, model: Any = None, suite: Any = None, **more: Any) -> api.Outcome:
    file = suite or str(runs.suite(folder / "s.yaml", runs.board(threats=[{"norm": "linf", "eps": "1/255"}])))
    settings = Settings(root=str(folder / "store"), threads=1)
    return sb.evaluate(model or kit.Linear(classes=4), file, settings=settings, **more)


def test_images_of_the_caller_take_the_place_of_the_suites(tmp_path: Path) -> None:
    x, y = images()
    outcome = evaluate(tmp_path, x=x, y=y)
    assert outcome.ended == {"ok": 2}
    assert repr(outcome) == f"Outcome(2 rows in {str(tmp_path / 'store')!r}: 2 ok)"
    (row,) = [r for r in outcome.results if r.cell.attack]
    assert row.value("clean_acc") == 1.0
    assert row.cell.data["count"] == 12
    assert row.cell.data["classes"] == 4
    assert row.cell.data["name"] == f"own-{row.cell.data['digest'][:8]}"
    assert "robust_acc_8bit" not in row.metrics, "images off the grid are not rounded"
    # the closed form for one step of a linear model
    by_hand = sb.attack("fgsm")(kit.Linear(classes=4), x, y, norm="linf", eps="1/255")
    right = (kit.Linear(classes=4)(by_hand).argmax(1) == y).float().mean()
    assert row.value("robust_acc") == pytest.approx(float(right), abs=1e-6)
    assert evaluate(tmp_path, x=x, y=y).ended == {"cached": 2}
    assert evaluate(tmp_path, x=x.numpy(), y=y.tolist()).ended == {"cached": 2}
    loader = DataLoader(TensorDataset(x, y), batch_size=5)
    assert evaluate(tmp_path, data=loader).ended == {"cached": 2}
    assert evaluate(tmp_path, data=TensorDataset(x, y)).ended == {"cached": 2}
    assert evaluate(tmp_path, data=[(x[:7], y[:7]), (x[7:], y[7:])]).ended == {"cached": 2}
    other = x.clone()
    other[0, 0, 0, 0] += 1e-6
    assert evaluate(tmp_path, x=other, y=y).ended == {"ok": 2}
    assert evaluate(tmp_path, x=x, y=y, again=True).ended == {"ok": 2}
    assert sb.report(outcome.results)


def test_eight_bit_images_are_images_as_any(tmp_path: Path) -> None:
    x, y = images()
    x = (x * 255).round() / 255
    (row,) = [r for r in evaluate(tmp_path, x=x, y=y).results if r.cell.attack]
    assert "robust_acc_8bit" in row.metrics
    assert "kind" not in row.cell.data


def test_images_with_one_channel(tmp_path: Path) -> None:
    x, _ = images(channels=1)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    y = model(x).argmax(1)
    outcome = evaluate(tmp_path, model, x=x, y=y)
    assert outcome.ended == {"ok": 2}
    assert {r.value("clean_acc") for r in outcome.results if r.cell.attack} == {1.0}


def test_the_default_suite_and_one_threat_for_all_boards(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(api, "run", lambda suite, settings, **more: seen.append(more["planned"].cells))
    x, y = images()
    sb.evaluate(kit.Linear(classes=4), x=x, y=y)
    sb.evaluate(kit.Linear(classes=4), x=x, y=y, norm="l2", eps=0.5)
    sb.evaluate(kit.Linear(classes=4), x=x, y=y, eps="2/255", tracks=["query"])
    attacks = {c.labels.get("attack") for c in seen[0]} - {None}
    assert attacks == {"pgd", "autoattack", "square"}
    assert {c.labels["threat"] for c in seen[0]} == {"linf 8/255"}
    assert {c.labels["threat"] for c in seen[1]} == {"l2 0.5"}
    assert {(c.track, c.labels["threat"]) for c in seen[2]} == {("query", "linf 2/255")}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"x": images()[0]}, "y: missing; x are the images, y their labels"),
        ({"data": [images()], "x": images()[0]}, "data: leave it out when x and y are given"),
        ({"x": images()[0] * 255, "y": images()[1]}, "divide by 255"),
        ({"x": images()[0].byte(), "y": images()[1]}, "found torch.uint8"),
        ({"x": images()[0], "y": images()[1] + 4}, "the model has the classes 0..3"),
        ({"x": images()[0], "y": images()[1].float()}, "expected 12 integers, found torch.float32"),
        ({"x": images()[0][:0], "y": images()[1][:0]}, "images: expected at least one"),
        ({"x": "cat.png", "y": images()[1]}, "images: expected a tensor or a numpy array, found 'cat.png'"),
        ({"data": []}, "data: no images"),
        ({"data": images()[0]}, "data: expected an ImageSet, or batches of (images, labels)"),
        ({"data": [images()[0]]}, "an item is a Tensor, not (images, labels)"),
        ({"data": [(torch.zeros(1, 3, 8, 8), [0]), (torch.zeros(1, 3, 9, 9), [0])]}, "resize them to one"),
        (
            {"data": [{"image": 1, "label": 2}]},
            "an item is a dict with ['image', 'label']: use ((b[IMAGES], b[LABELS])",
        ),
        ({"data": [(images()[0][:4], [0] * 5), (images()[0][4:], [0] * 7)]}, "an item has 4 images and 5 labels"),
        ({"eps": "a"}, "norm, eps: expected a number or a fraction such as 8/255, found 'a'"),
        ({"norm": "l2"}, "norm: 'l2' has no eps; give eps= too"),
        ({"eps": 80}, "eps"),
        ({"norm": "l7", "eps": 1}, "found 'l7'"),
    ],
)
def test_anything_else_is_refused_in_one_line(more: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        evaluate(tmp_path, **more)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "store").exists()


class Endless:
    """A dataset that does not say where it ends, as torch allows."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        x, y = images(3)
        return x[i % 3], y[i % 3 : i % 3 + 1]


class Counts(kit.Linear):
    """Counts its passes in a buffer."""

    passes: Tensor

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return super().forward(x)


def test_datasets_and_models_that_only_just_work(tmp_path: Path) -> None:
    x, y = images(3)
    (row,) = [r for r in evaluate(tmp_path, data=Endless()).results if r.cell.attack]
    assert evaluate(tmp_path, x=x, y=y).ended == {"cached": 2}
    (counted,) = [
        r for r in evaluate(tmp_path, Counts(classes=4), x=x, y=y, tracks="white_box").results if r.cell.attack
    ]
    assert counted.value("robust_acc") == row.value("robust_acc")
    assert evaluate(tmp_path, Counts(classes=4), x=x, y=y).ended == {"cached": 2}


def test_settings_and_models_of_another_kind_are_refused(tmp_path: Path) -> None:
    x, y = images(3)
    (tmp_path / "file").write_text("")
    for settings in (str(tmp_path), Settings(root=str(tmp_path / "file"))):
        with pytest.raises(ConfigError, match="settings"):
            sb.evaluate(kit.Linear(classes=4), x=x, y=y, settings=settings)  # type: ignore[arg-type]
    cut = kit.Linear(classes=4)
    cut.forward = lambda x: kit.Linear(classes=4)(torch.from_numpy(x.numpy()))  # type: ignore[method-assign]
    with pytest.raises(ModelError, match=r"the model fails on images .* a score attack such as square needs none"):
        sb.evaluate(cut, x=x, y=y)
    for model, words in ((lambda x: x, "expected a torch.nn.Module"), (torch.nn.LazyLinear(4), "a lazy module")):
        with pytest.raises(ModelError, match=words):
            sb.evaluate(model, x=x, y=y)  # type: ignore[arg-type]


def test_what_needs_training_images_is_refused_by_name(tmp_path: Path) -> None:
    x, y = images()
    for board, words in (
        (runs.board(defenses=["pgd_at"]), "defense 'pgd_at' needs training images"),
        (
            runs.board(track="patch", attacks=["universal_patch"], threats=[{"norm": "l0", "eps": 0.1}]),
            "needs training",
        ),
    ):
        board = {k: v for k, v in board.items() if k != "measures" or board["track"] == "white_box"}
        if board["track"] == "patch":
            from siegebench import registry
            from siegebench.types import Attack

            learning = [n for n in registry.names("attack") if getattr(registry.entry_class("attack", n), "learns", 0)]
            board["attacks"] = [n for n in learning if "l0" in registry.build(Attack, n).handles()][:1]
        with pytest.raises(ConfigError, match=words) as error:
            evaluate(tmp_path, suite=str(runs.suite(tmp_path / "t.yaml", board)), x=x, y=y)
        assert "t.yaml:" in str(error.value)


def test_a_classifier_of_another_kind_is_refused(tmp_path: Path) -> None:
    x, y = images()
    model = sb.Network(kit.Linear(classes=4), num_classes=4)
    assert evaluate(tmp_path, model, x=x, y=y).ended == {"ok": 2}
    grey, _ = images(channels=1)
    with pytest.raises(ModelError, match=r"the model takes image with 3 channels in \[0, 1\]"):
        given.fitted(model, given._image_set(model, grey.expand(-1, 3, -1, -1)[:, :1], y))


@pytest.mark.filterwarnings("ignore")
def test_quantised_layers_can_be_evaluated(tmp_path: Path) -> None:
    """Their state holds other things than tensors."""
    x, y = images()
    model = torch.ao.quantization.quantize_dynamic(kit.Linear(classes=4), {torch.nn.Linear}, dtype=torch.qint8)
    board = {"track": "query", "attacks": [{"name": "square", "queries": 5}], "queries": 5}
    file = runs.suite(tmp_path / "q.yaml", {**board, "threats": [{"norm": "linf", "eps": "8/255"}]})
    assert evaluate(tmp_path, model, str(file), x=x, y=y).ended == {"ok": 1}


def test_stored_images_are_not_written_into() -> None:
    x, y = images()
    data = given._image_set(sb.Network(kit.Linear(classes=4), num_classes=4), x, y)
    data.pixels().zero_()
    assert torch.equal(data.pixels(), x)
    assert np.array_equal(data.images.numpy(), x.numpy())


def test_a_misspelt_argument_is_named() -> None:
    with pytest.raises(TypeError, match=r"evaluate\(\) has no argument 'setings'\. Did you mean settings\?"):
        sb.evaluate(kit.Linear(), setings=None)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"run\(\) has no argument 'overides'\. Did you mean overrides\?"):
        sb.run("quickstart", overides=[])  # type: ignore[call-arg]


def test_without_images_and_suite_nothing_is_run_and_both_are_named() -> None:
    with pytest.raises(ConfigError, match=r"no images\. Give x= and y=, or data=, .*; or suite='quickstart'"):
        sb.evaluate(kit.Linear(classes=10, size=32))
    with pytest.raises(ConfigError, match=r"no images"):
        sb.evaluate(kit.Linear(classes=10, size=32), eps="2/255", tracks=["white_box"])


def test_the_suite_of_own_images_is_a_suite_as_any() -> None:
    assert len(plan(load_suite("own")).cells) > 3
