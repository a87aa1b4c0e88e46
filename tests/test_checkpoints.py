"""Checkpoints: the weights are found wherever they lie, or the message says what was found and what was expected."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import siegebench as sb
from siegebench.checkpoints import load_checkpoint
from siegebench.errors import ModelError
from tests import layouts
from tests.layouts import LAYOUTS, MEAN, NORMALISED, STD, WRITERS, Net, net, other, prefixed


@pytest.fixture
def x() -> Tensor:
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def saved(folder: Path, content: Any, name: str = "w.pth") -> Path:
    torch.save(content, folder / name)
    return folder / name


# ------------------------------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_are_found_in_every_layout(tmp_path: Path, x: Tensor, layout: str) -> None:
    trained = net()
    path = saved(tmp_path, LAYOUTS[layout](trained.state_dict()))
    found = load_checkpoint(net(seed=1), path)
    mean, std = NORMALISED.get(layout, ((0.0,) * 3, (1.0,) * 3))
    assert found.card.preprocessing["mean"] == pytest.approx(mean)
    assert found.card.preprocessing["std"] == pytest.approx(std)
    assert ("normalisation from" in found.card.source) == (layout in NORMALISED)
    expected = trained((x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1))
    torch.testing.assert_close(found(x), expected)
    assert found.num_classes == 10
    assert not found.training


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_of_another_network_are_refused_in_every_layout(tmp_path: Path, layout: str) -> None:
    path = saved(tmp_path, LAYOUTS[layout](net().state_dict()))
    before = net(7).state_dict()
    into = net(7)
    with pytest.raises(ModelError, match="weights for 10 classes, the network has 7"):
        load_checkpoint(into, path)
    assert all(torch.equal(t, before[n]) for n, t in into.state_dict().items())
    with pytest.raises(ModelError, match=r"\.0\.weight is \(4, 3, 3, 3\), this network expects \(5, 3, 3, 3\)"):
        load_checkpoint(net(width=5), path)
    with pytest.raises(ModelError, match=r"another architecture: \d+ tensors missing \(such as body.*expected body"):
        load_checkpoint(net(names=("body", "head")), path)
    deeper = nn.Sequential(net(), nn.Linear(10, 10))
    with pytest.raises(ModelError, match="weights of another architecture: "):
        load_checkpoint(deeper, path)


@pytest.mark.parametrize("writer", WRITERS)
def test_weights_are_read_from_every_format(tmp_path: Path, x: Tensor, writer: str) -> None:
    trained = net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of TorchScript, when it writes
        WRITERS[writer](tmp_path / "w.npz" if writer == "npz" else tmp_path / "w", trained)
    (path,) = tmp_path.iterdir()
    torch.testing.assert_close(load_checkpoint(net(seed=1), path)(x), trained(x))
    with pytest.raises(ModelError, match="weights for 10 classes, the network has 7"):
        load_checkpoint(net(7), path)


def test_networks_wrapped_by_torch_or_by_the_user_are_filled_too(tmp_path: Path, x: Tensor) -> None:
    class Mine(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.backbone_of_mine = inner

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.backbone_of_mine(x)
            return out

    trained = net()
    path = saved(tmp_path, {"state_dict": prefixed("model.", trained.state_dict()), "epoch": 3})
    for wrap in (nn.DataParallel, Mine, lambda n: nn.Sequential(nn.Identity(), n)):
        torch.testing.assert_close(load_checkpoint(wrap(net(seed=1)), path)(x), trained(x))


# -------------------------------------------------------------------------------------------------- several that fit


def test_plain_weights_win_unless_ema_is_asked_for(tmp_path: Path, x: Tensor) -> None:
    trained, averaged = net(), net()
    averaged.load_state_dict(other(trained.state_dict()))
    for make in (layouts.timm_train, layouts.torchvision):
        path = saved(tmp_path, make(trained.state_dict()))
        torch.testing.assert_close(load_checkpoint(net(seed=1), path)(x), trained(x))
        found = load_checkpoint(net(seed=1), path, ema=True)
        torch.testing.assert_close(found(x), averaged(x))
        assert "from state_dict_ema" in found.card.source or "from model_ema.module" in found.card.source
        torch.testing.assert_close(load_checkpoint(net(seed=1), path, part=_place(found.card.source))(x), averaged(x))
    with pytest.raises(ModelError, match=r"no averaged \(EMA\) weights .* at `net`"):
        load_checkpoint(net(), saved(tmp_path, {"net": trained.state_dict()}), ema=True)


def _place(source: str) -> str:
    return source.partition("from ")[2].partition(")")[0].partition(";")[0].removesuffix(".module")


def test_sets_that_differ_must_be_chosen_between(tmp_path: Path, x: Tensor) -> None:
    trained = net()
    state = trained.state_dict()
    path = saved(tmp_path, prefixed("student.", state) | prefixed("teacher.", other(state)))
    with pytest.raises(ModelError, match=r"2 sets of weights fit .*`student` and `teacher`.*`part: teacher`"):
        load_checkpoint(net(), path)
    torch.testing.assert_close(load_checkpoint(net(seed=1), path, part="student")(x), trained(x))
    with pytest.raises(ModelError, match="no weights of this network at `tutor`; they are at `student` and `teacher`"):
        load_checkpoint(net(), path, part="tutor")
    # equal copies are no choice, and the usual place wins over others
    load_checkpoint(net(), saved(tmp_path, {"now": state, "best": dict(state)}))
    load_checkpoint(net(), saved(tmp_path, {"state_dict": state, "before": other(state)}))
    with pytest.raises(ModelError, match="2 sets of weights"):
        load_checkpoint(net(), saved(tmp_path, {"state_dict": [state, other(state)]}))


# -------------------------------------------------------------------------------------------------- beside the weights


def test_a_sequential_that_computes_more_is_refused(tmp_path: Path) -> None:
    denoiser = {"0.weight": torch.ones(3, 3, 1, 1)}
    path = saved(tmp_path, denoiser | prefixed("1.", net().state_dict()))
    with pytest.raises(ModelError, match=r"at `1` of a Sequential that also contains 0\.weight \(3, 3, 1, 1\)"):
        load_checkpoint(net(), path)
    assert "1 tensors not used" in load_checkpoint(net(), path, part="1").card.source


def test_what_may_be_a_normalisation_is_not_ignored(tmp_path: Path) -> None:
    state = prefixed("1.", net().state_dict())
    path = saved(tmp_path, {"0.offset": torch.ones(1, 3, 1, 1), "0.scale": torch.ones(1, 3, 1, 1), **state})
    with pytest.raises(ModelError, match=r"beside the weights lies 0\.offset.*give mean and std"):
        load_checkpoint(net(), path)
    assert load_checkpoint(net(), path, mean=MEAN, std=STD).mean.flatten().tolist() == pytest.approx(MEAN)
    with pytest.warns(UserWarning, match="`1`, an index of a Sequential, and a module before them has no weights"):
        load_checkpoint(net(), saved(tmp_path, state))
    load_checkpoint(net(), saved(tmp_path, state), mean=0.5, std=0.5)


def test_normalisations_that_differ_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, LAYOUTS["Sequential(normalise, net)"](net().state_dict()))
    with pytest.raises(ModelError, match=r"contains the normalisation mean \(0\.1, 0\.2, 0\.3\).*you gave mean \(0\.5"):
        load_checkpoint(net(), path, mean=0.5, std=0.5)
    assert load_checkpoint(net(), path, mean=MEAN, std=STD).card.source.startswith("w.pth (normalisation from 0.mean")
    content = {"net": net().state_dict(), "a": {"mean": MEAN, "std": STD}, "b": {"mean": STD, "std": STD}}
    with pytest.raises(ModelError, match=r"normalisations that differ: a\.mean"):
        load_checkpoint(net(), saved(tmp_path, content))
    one = {"net": net().state_dict(), "accuracy": {"mean": 0.9, "std": 0.01}, "worst": {"mean": [1.0, 2.0], "std": []}}
    assert load_checkpoint(net(), saved(tmp_path, one)).card.preprocessing["mean"] == (0.0, 0.0, 0.0)


def test_a_network_that_normalises_itself_is_left_alone(tmp_path: Path, x: Tensor) -> None:
    class Whole(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            first, second = self
            out: Tensor = second((x - first.mean) / first.std)
            return out

    trained = Whole(layouts.Normalise(("mean", "std")), net())
    blank = Whole(layouts.Normalise(("mean", "std")), net(seed=1))
    found = load_checkpoint(blank, saved(tmp_path, {"net": trained.state_dict(), "mean": MEAN, "std": STD}))
    torch.testing.assert_close(found(x), trained(x))


def test_grey_networks_read_one_number(tmp_path: Path) -> None:
    grey = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 10))
    content = {"net": grey.state_dict(), "mean": 0.1307, "std": 0.3081, "accuracy": {"mean": 0.9, "std": 0.01}}
    found = load_checkpoint(grey, saved(tmp_path, content))
    assert (found.card.preprocessing["mean"], found.card.preprocessing["std"]) == ((0.1307,), (0.3081,))
    assert found(torch.rand(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize(
    ("mean", "std", "expected"),
    [
        ([0.0] * 3, [255.0] * 3, ((0.0,) * 3, (1.0,) * 3)),
        ([127.5] * 3, [1.0] * 3, ((0.5,) * 3, (1 / 255,) * 3)),
        ([0.5] * 3, [2.0] * 3, ((0.5,) * 3, (2.0,) * 3)),
    ],
)
def test_a_normalisation_of_pixels_up_to_255_is_scaled(tmp_path: Path, mean: Any, std: Any, expected: Any) -> None:
    found = load_checkpoint(net(), saved(tmp_path, {"net": net().state_dict(), "mean": mean, "std": std}))
    assert found.card.preprocessing["mean"] == pytest.approx(expected[0])
    assert found.card.preprocessing["std"] == pytest.approx(expected[1])


def test_a_normalisation_in_two_scales_is_refused_and_scores_are_none(tmp_path: Path) -> None:
    mixed = {**prefixed("1.", net().state_dict()), "0.mean": torch.full((3,), 0.5), "0.std": torch.full((3,), 60.0)}
    with pytest.raises(ModelError, match=r"beside the weights lies 0\.mean, which .*give mean and std"):
        load_checkpoint(net(), saved(tmp_path, mixed))
    scores = {"net": net().state_dict(), "metrics": {"mean": [0.93, 0.9, 0.9], "std": [0.01, 0.01, 0.01]}}
    assert load_checkpoint(net(), saved(tmp_path, scores)).card.preprocessing["mean"] == (0.0,) * 3


# ------------------------------------------------------------------------------------------------------ what is refused


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"layer{i}": tensor for i, tensor in enumerate(state.values())}


@pytest.mark.filterwarnings("ignore:.*quantize_per_tensor")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda s: {"epoch": 3, "args": [1]}, r"no tensors; found epoch \(int\), .*expected features\.0\.weight"),
        (lambda s: {}, "contains no tensors; found nothing"),
        (lambda s: 3, "contains no tensors"),
        (lambda s: {"net": {"fc.weight": torch.ones(2)}}, r"at `net`: fc\.weight \(2,\) \(1 tensors\); expected feat"),
        (renamed, r"8 tensors missing \(such as features\.0\.weight\), 9 not of this network \(such as layer0\)"),
        (lambda s: {**s, "aux.weight": torch.ones(2)}, r"1 not of this network \(such as aux\.weight\)"),
        (lambda s: {k: v for k, v in s.items() if "bias" not in k}, r"3 tensors missing \(such as features\.0\.bias\)"),
        (lambda s: {**s, "classifier.bias": torch.full((10,), float("nan"))}, r"classifier\.bias contains NaN"),
        (lambda s: {"optimizer": {"exp_avg": s}}, r"no tensors; found optimizer \(state of the training\)"),
        (lambda s: {k: t.to("meta") for k, t in s.items()}, r"found .*weight \(meta tensor without numbers\)"),
        (lambda s: {k: (t * 100).to(torch.int8) for k, t in s.items()}, r"0\.weight is int8, expected float32\. Save"),
        (lambda s: {**s, "classifier.weight": torch.quantize_per_tensor(s["classifier.weight"], 0.1, 0, torch.qint8)},
         r"classifier\.weight is a quantised tensor, expected plain tensors; save the weights from before"),
        (lambda s: {**s, "classifier.weight": s["classifier.weight"].to_sparse()}, r"is a sparse tensor, expected"),
        (lambda s: {k: t for k, t in s.items() if "class" not in k}, "lacks only classifier, the last layer: give"),
        (lambda s: {"\x1b[1mred\x1b[0m": s["classifier.bias"]}, r"Found '\\x1b\[1mred"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_explained(
    tmp_path: Path, content: Callable[[dict[str, Tensor]], Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message) as error:
        load_checkpoint(net(), saved(tmp_path, content(net().state_dict())))
    assert str(error.value).startswith(str(tmp_path))
    assert "\x1b" not in str(error.value)


def test_the_same_layers_under_other_names_are_not_matched_by_order_but_said(tmp_path: Path) -> None:
    path = saved(tmp_path, net(names=("body", "head")).state_dict())
    with pytest.raises(ModelError, match="The shapes agree in their order: if these are the same layers under other"):
        load_checkpoint(net(), path)


def test_a_part_with_the_same_names_is_not_the_network(tmp_path: Path) -> None:
    """A small network must not be filled from somewhere inside a large one."""
    large = nn.Sequential(net(), nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10)))
    path = saved(tmp_path, large.state_dict())
    with pytest.raises(ModelError, match=r"2 sets of weights fit|of a Sequential that also contains"):
        load_checkpoint(nn.Linear(10, 10), path)
    with pytest.raises(ModelError, match="weights of another architecture"):
        load_checkpoint(nn.Sequential(nn.Flatten(), nn.Linear(4, 10)), saved(tmp_path, net().state_dict()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mean": 0.5}, "mean is 0.5, std is None; give both or neither"),
        ({"mean": (0.5, 0.5), "std": (1, 1)}, "mean has 2 numbers, the images have 3 channels"),
        ({"mean": 0.5, "std": 0}, "expected numbers above 0"),
    ],
)
def test_arguments_are_checked(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_checkpoint(net(), saved(tmp_path, net().state_dict()), **arguments)


def test_networks_that_cannot_be_filled_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, net().state_dict())
    with pytest.raises(ModelError, match="takes the bare network, found a Network"):
        load_checkpoint(sb.Network(net(), num_classes=10), path)
    with pytest.raises(ModelError, match="lazy layers without shapes"):
        load_checkpoint(nn.Sequential(nn.LazyConv2d(3, 3), nn.Linear(3, 10)), path)
    with pytest.raises(ModelError, match="has no linear layer to read the number of classes from"):
        load_checkpoint(nn.Flatten(), path)
    with pytest.raises(ModelError, match="has no weights to load"):
        load_checkpoint(nn.Flatten(), path, num_classes=10)


def test_size_name_and_classes_reach_the_classifier(tmp_path: Path) -> None:
    found = sb.load_checkpoint(net(), saved(tmp_path, net().state_dict()), size=16, num_classes=10, name="mine")
    assert isinstance(found.net, Net)
    assert (found.size, found.card.name, found.card.architecture) == ((16, 16), "mine", "Net")
    assert found(torch.rand(1, 3, 8, 8)).shape == (1, 10)
