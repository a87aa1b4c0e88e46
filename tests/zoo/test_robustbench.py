"""Networks of RobustBench by id: architectures with the published names of weights, files found, ids checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from siegebench.zoo import _cifar_nets, _robustbench_ids
from siegebench.zoo._robustbench_ids import CIFAR, IDS, Known
from torch import Tensor, nn

from siegebench import registry
from siegebench.errors import ConfigError, ModelError

from .building import built, model

State = dict[str, Tensor]


@pytest.fixture
def x() -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def lively(name: str, classes: int = 10, spare: bool = False) -> nn.Module:
    """A network whose batch norms do something."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = _cifar_nets.make(name, classes, spare).eval()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.1)
                nn.init.normal_(module.running_mean, 0, 0.1)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net


# published: 36.5 M and 46.2 M (Zagoruyko and Komodakis; Zhang et al.), 11.17 M and 23.52 M of the usual CIFAR ResNets
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("wrn-28-10", 36_479_194), ("wrn-34-10", 46_160_474), ("swish-wrn-28-10", 36_479_194),
        ("resnet-18", 11_173_962), ("resnet-50", 23_520_842), ("preact-18-raw", 11_171_146), ("preact-18", 11_172_170),
    ],
)  # fmt: skip
def test_sizes_are_those_that_are_known(name: str, parameters: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in _cifar_nets.make(name, 10).parameters()) == parameters


def norm(s: State, name: str, x: Tensor) -> Tensor:
    mean, var = s[f"{name}.running_mean"], s[f"{name}.running_var"]
    return F.batch_norm(x, mean, var, s[f"{name}.weight"], s[f"{name}.bias"])


def test_a_wide_network_from_its_weights_alone(x: Tensor) -> None:
    """WRN-10-2 written down from the names of its weights: one block in each group, with a shortcut."""
    net = lively("wrn-10-2")
    s = net.state_dict()
    h = F.conv2d(x, s["conv1.weight"], padding=1)
    for g in (1, 2, 3):
        b, stride = f"block{g}.layer.0", 1 if g == 1 else 2
        out = F.relu(norm(s, f"{b}.bn1", h))
        side = F.conv2d(out, s[f"{b}.convShortcut.weight"], stride=stride)
        out = F.conv2d(out, s[f"{b}.conv1.weight"], stride=stride, padding=1)
        h = side + F.conv2d(F.relu(norm(s, f"{b}.bn2", out)), s[f"{b}.conv2.weight"], padding=1)
    h = F.avg_pool2d(F.relu(norm(s, "bn1", h)), 8).flatten(1)
    torch.testing.assert_close(net(x), F.linear(h, s["fc.weight"], s["fc.bias"]))


def test_a_swish_network_pads_right_and_bottom(x: Tensor) -> None:
    net = lively("swish-wrn-10-2")
    s = net.state_dict()
    h = F.conv2d(x, s["init_conv.weight"], padding=1)
    for g in (0, 1, 2):
        b, stride = f"layer.{g}.block.0", 1 if g == 0 else 2
        out = F.silu(norm(s, f"{b}.batchnorm_0", h))
        side = F.conv2d(out, s[f"{b}.shortcut.weight"], stride=stride)
        padded = F.pad(out, (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1))
        out = F.conv2d(padded, s[f"{b}.conv_0.weight"], stride=stride)
        h = side + F.conv2d(F.silu(norm(s, f"{b}.batchnorm_1", out)), s[f"{b}.conv_1.weight"], padding=1)
    h = F.silu(norm(s, "batchnorm", h)).mean((2, 3))
    torch.testing.assert_close(net(x), F.linear(h, s["logits.weight"], s["logits.bias"]))


@pytest.mark.parametrize("raw", [True, False])
def test_shortcuts_of_pre_activation_blocks(raw: bool) -> None:
    x = torch.rand(2, 4, 6, 6, generator=torch.Generator().manual_seed(0)) - 0.5
    block = _cifar_nets.PreActBlock(4, 8, 2, raw).eval()
    s = block.state_dict()
    out = F.relu(norm(s, "bn1", x))
    side = F.conv2d(x if raw else out, s["shortcut.0.weight"], stride=2)
    out = F.conv2d(out, s["conv1.weight"], stride=2, padding=1)
    expected = side + F.conv2d(F.relu(norm(s, "bn2", out)), s["conv2.weight"], padding=1)
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("name", ["resnet-18", "preact-18", "preact-18-raw", "swish-preact-18"])
def test_the_other_networks_answer(name: str, x: Tensor) -> None:
    z = lively(name)(x[:1])
    assert z.shape == (1, 10)
    assert bool(torch.isfinite(z).all())


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """RobustBench has a network that is small enough for a test."""
    known = {**IDS["cifar10", "Linf"], "Tiny2020": Known("wrn-10-1", CIFAR)}
    monkeypatch.setitem(_robustbench_ids.IDS, ("cifar10", "Linf"), known)


def normalised(x: Tensor) -> Tensor:
    return (x - torch.tensor(CIFAR[0]).view(3, 1, 1)) / torch.tensor(CIFAR[1]).view(3, 1, 1)


def spec(folder: Path, **changes: Any) -> dict[str, Any]:
    return {"name": "robustbench", "id": "Tiny2020", "folder": str(folder), **changes}


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("place", ["cifar10/Linf/Tiny2020.pt", "Tiny2020.pt"])
@pytest.mark.parametrize("spare", [True, False])
def test_a_file_as_robustbench_stores_it(tmp_path: Path, x: Tensor, place: str, spare: bool) -> None:
    net = lively("wrn-10-1", spare=spare)
    state = {f"module.{name}": value for name, value in net.state_dict().items()}
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": state, "epoch": 3}, path)
    loaded = built(spec(tmp_path))
    torch.testing.assert_close(loaded(x), net(normalised(x)), atol=1e-5, rtol=0)
    assert loaded.card.name == "Tiny2020"
    source = model(spec(tmp_path))
    assert set(source.identity()) == {"sha256"}
    assert "folder" not in registry.description_of("model", source)


@pytest.mark.usefixtures("tiny")
def test_a_normalisation_in_the_file_must_agree(tmp_path: Path) -> None:
    state = lively("wrn-10-1").state_dict()
    mu, sigma = (torch.tensor(v).view(1, 3, 1, 1) for v in CIFAR)
    torch.save({**state, "mu": mu, "sigma": sigma}, tmp_path / "Tiny2020.pt")
    assert built(spec(tmp_path)).mean.flatten().tolist() == pytest.approx(CIFAR[0])
    torch.save({**state, "mu": mu + 0.1, "sigma": sigma}, tmp_path / "Tiny2020.pt")
    with pytest.raises(ModelError, match="contains the normalisation"):
        built(spec(tmp_path))


@pytest.mark.usefixtures("tiny")
def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no file; looked for .*cifar10/Linf/Tiny2020\.pt.*load_model\('Tiny2020'"):
        built(spec(tmp_path))
    with pytest.raises(ModelError, match="a network for cifar10, 10 classes; the data has 43"):
        built(spec(tmp_path), num_classes=43)
    with pytest.raises(ConfigError, match=r"has no network 'Carmon2019Unlabelled' .* Did you mean Carmon2019Unlabeled"):
        model({"name": "robustbench", "id": "Carmon2019Unlabelled"})
    with pytest.raises(
        ConfigError, match=r"'Rony2019Decoupling' .*It is in the list of \{dataset: cifar10, norm: L2\}"
    ):
        model({"name": "robustbench", "id": "Rony2019Decoupling"})


def test_every_id_has_an_architecture() -> None:
    for (dataset, _), known in IDS.items():
        for name, entry in known.items():
            if dataset != "imagenet":
                _cifar_nets.check(entry.architecture)
            assert len(entry.norm[0]) == len(entry.norm[1]) == 3, name


def test_a_network_of_ones_own(tmp_path: Path, x: Tensor) -> None:
    net = lively("wrn-10-1", classes=7)
    torch.save({"model": net.state_dict()}, tmp_path / "mine.pth")
    own = {"name": "cifar_net", "architecture": "wrn-10-1", "checkpoint": str(tmp_path / "mine.pth")}
    torch.testing.assert_close(built(own, num_classes=7)(x), net(x))
    with pytest.raises(ConfigError, match=r"unknown architecture 'preact-19'\. Did you mean preact-18"):
        model({"name": "cifar_net", "architecture": "preact-19"})
    with pytest.raises(ConfigError, match="expected a depth of 6n"):
        model({"name": "cifar_net", "architecture": "wrn-29-10"})
