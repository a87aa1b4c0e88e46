"""Models that users bring are attacked correctly, or refused in one line that says what was expected."""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import siegebench as sb
from siegebench.classifier import Network, as_logits, copied
from siegebench.errors import ModelError, SiegeError
from siegebench.inputs import UnreliableModel, as_classifier
from tests import kit
from tests.brought import Around, N, batch, pgd, victim, wrong


@dataclass
class Output:
    logits: Tensor
    loss: None = None


@pytest.mark.parametrize(
    "shape",
    [
        lambda z: (z, z.mean()),
        lambda z: [z],
        lambda z: {"logits": z, "features": z},
        lambda z: {"out": z},
        Output,
        lambda z: z.squeeze(),
        lambda z: z.bfloat16(),
        lambda z: z.double(),
    ],
)
def test_logits_are_found_in_what_a_model_returns(shape: Any) -> None:
    x, y = batch()
    model = Around(lambda net, x: shape(net(x)))
    for n in (N, 1):
        assert wrong(pgd(model, x[:n], y[:n]), y[:n]) == n
    assert wrong(sb.attack("apgd", steps=5)(model, x, y, eps="16/255"), y) == N


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (lambda z: (z, z), "returns a tuple with 2 tensors that could be logits"),
        (lambda z: {}, "returns a dict with 0 tensors"),
        (lambda z: z[:, :1], "For a sigmoid classifier return two logits"),
        (lambda z: z[:, 0], "one number for each image"),
        (lambda z: z[:, :, None, None], "returns (4, 10, 1, 1) for 4 images"),
        (lambda z: z.argmax(1), "returns torch.int64 (4,)"),
        (lambda z: None, "NoneType"),
        (lambda z: z * torch.nan, "NaN or infinite logits"),
        (lambda z: z[:2], "returns (2, 10) for 4 images"),
        (lambda z: z @ z, "the model fails on images (4, 3, 8, 8), torch.float32 in [0, 1]: RuntimeError"),
    ],
)
def test_answers_that_are_no_logits_are_refused(shape: Any, words: str) -> None:
    x, y = batch()
    with pytest.raises(ModelError) as error:
        pgd(Around(lambda net, x: shape(net(x))), x, y)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_the_number_of_classes_is_checked() -> None:
    x, y = batch()
    with pytest.raises(ModelError, match="has 12 classes"):
        pgd(victim(), x, y, num_classes=12)
    with pytest.raises(ModelError, match="num_classes is 12"):
        pgd(Network(victim(), num_classes=10), x, y, num_classes=12)
    with pytest.raises(ModelError, match=r"expected a torch\.nn\.Module"):
        pgd("resnet18", x, y)
    assert as_logits(torch.zeros(10), 1).shape == (1, 10)


class Keeps(nn.Module):
    """Keeps a tensor with its graph, as hooks for class activation maps do."""

    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__()
        self.net, self.kept = net or victim(), {}

    def forward(self, x: Tensor) -> Tensor:
        self.kept["z"] = [self.net(x)]
        return self.kept["z"][0]


def quantised() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(victim(), {nn.Linear}, dtype=torch.qint8)


def used(model: nn.Module, x: Tensor) -> nn.Module:
    model(x)
    return model


EXOTIC: dict[str, Callable[[Tensor], Any]] = {
    "script": lambda x: torch.jit.script(kit.small_cnn()),
    "frozen_script": lambda x: torch.jit.freeze(torch.jit.script(kit.small_cnn().eval())),
    "trace": lambda x: torch.jit.trace(kit.small_cnn(), x),
    "export": lambda x: torch.export.export(
        kit.small_cnn().eval(), (x,), dynamic_shapes=({0: torch.export.Dim("n", min=1, max=512)},)
    ),
    "data_parallel": lambda x: nn.DataParallel(kit.small_cnn()),
    "compiled": lambda x: torch.compile(kit.small_cnn()),
    "keeps_graph": lambda x: used(Keeps(kit.small_cnn()), x),
    "bfloat16": lambda x: kit.small_cnn().bfloat16(),
    "float64": lambda x: kit.small_cnn().double(),
    "train_mode": lambda x: kit.small_cnn().train(),
    "autocast": lambda x: Around(lambda net, x: torch.autocast("cpu", torch.bfloat16)(net)(x), kit.small_cnn()),
}


@pytest.mark.parametrize("name", EXOTIC)
@pytest.mark.filterwarnings("ignore")
def test_modules_of_every_make_are_attacked(name: str) -> None:
    x = kit.grey_images(N, size=16)
    model = EXOTIC[name](x)
    inside = as_classifier(model, x.double() if name == "float64" else x)
    with torch.no_grad():
        y = inside(x.double() if name == "float64" else x).argmax(1)
    report = sb.attack("pgd", steps=10)(model, x, y, eps="64/255", report=True)
    assert int(report.success.sum()) >= N - 1, str(report)
    assert sb.attack("square", queries=10)(model, x, y, eps="8/255").shape == x.shape


def test_a_model_that_was_used_before_can_be_copied() -> None:
    model = used(Keeps(), batch()[0])
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(model)
    twin = copied(model)
    assert twin.net.layer.weight is not model.net.layer.weight
    assert torch.equal(twin.kept["z"][0], model.kept["z"][0])


DISTRIBUTED = """
import sys, torch
from torch import distributed, nn
import siegebench as sb
from tests import kit

distributed.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0, world_size=1)
model = nn.parallel.DistributedDataParallel(kit.small_cnn())
x = kit.grey_images(4, size=16)
assert sb.attack("pgd", steps=2)(model, x, model(x).argmax(1), eps="8/255").shape == x.shape
distributed.destroy_process_group()
"""


def test_distributed_modules_are_unwrapped(tmp_path: Path) -> None:
    # in a process of its own: a process group is global, and its threads do not suit one that many tests have used
    words = [sys.executable, "-c", DISTRIBUTED, str(tmp_path / "init")]
    subprocess.run(words, check=True, timeout=300, cwd=Path(__file__).resolve().parent.parent)


def test_models_that_are_no_function_of_the_image_are_named() -> None:
    x, y = batch()
    with pytest.warns(UnreliableModel, match="two passes of the same images differ"):
        pgd(Around(lambda net, x: net(x) + torch.rand(len(x), 10) * 50), x, y)
    with pytest.warns(UnreliableModel, match="depend on the other images"):
        pgd(Around(lambda net, x: net(x - x.mean(dim=0))), x, y)
    with pytest.warns(UnreliableModel, match="the outputs are probabilities, not logits"):
        pgd(Around(lambda net, x: net(x).softmax(dim=1)), x, y)


def test_weights_that_are_not_finite_are_named() -> None:
    x, y = batch()
    model = victim()
    name, weight = next((k, w) for k, w in model.named_parameters() if w.ndim > 1)
    weight.data.flatten()[0] = torch.nan
    with pytest.raises(ModelError, match=rf"NaN or infinite logits .*its weights '(.*\.)?{name}' are not finite"):
        pgd(model, x, y)


def test_any_number_of_channels_and_shapes_that_are_not_square() -> None:
    for channels, size in ((1, (8, 8)), (4, (8, 12)), (2, (6, 6))):
        net = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))
        x = 0.3 + 0.4 * torch.rand(3, channels, *size)
        y = net(x).argmax(1)
        for name, options in (("pgd", {}), ("square", {"queries": 20}), ("fab", {"steps": 2, "targets": 1})):
            assert sb.attack(name, **options)(net, x, y, eps="8/255").shape == x.shape
        wrapped = Network(net, num_classes=3)
        assert pgd(wrapped, x, y).shape == x.shape


def test_every_refusal_is_one_of_ours() -> None:
    x, y = batch()
    for model, images, labels in ((victim(), x[0], y[:1]), (victim(), x, y[:2]), (nn.Linear(3, 3), x, y), (3, x, y)):
        with pytest.raises(SiegeError):
            pgd(model, images, labels)
