"""The CIFAR ResNets: published numbers come out, wrong weights are refused before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from siegebench import registry
from siegebench.errors import ModelError
from siegebench.train import accuracy
from siegebench.weights import load_weights, save_weights, weights_hash
from tests.kit import data_folder

from .building import built, load, model


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SIEGEBENCH_DATA", raising=False)


@pytest.fixture
def x() -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_parameter_counts_are_those_of_the_paper(depth: int, millions: float) -> None:
    """He et al. 2016, table 6."""
    net = built({"name": "cifar_resnet20", "depth": depth, "checkpoint": None})
    count = sum(p.numel() for p in net.parameters())
    assert round(count / 1e6, 2 if depth < 110 else 1) == millions


@pytest.mark.parametrize(("name", "correct"), [("cifar_resnet20", 0.8103), ("cifar_resnet56", 0.8320)])
def test_published_weights_on_some_images(name: str, correct: float) -> None:
    from tests import subsets

    data_folder()
    test = load("cifar10_jpeg", "test")
    ids = subsets.stored("cifar10_jpeg", 200)
    assert ids is not None
    found = accuracy(built(name), test.select(torch.tensor(ids)))
    assert abs(found - correct) < 3 * (0.16 / 200) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize(("name", "correct"), [("cifar_resnet20", 0.8103), ("cifar_resnet56", 0.8320)])
def test_published_weights_on_all_images(name: str, correct: float) -> None:
    data_folder()
    assert accuracy(built(name), load("cifar10_jpeg", "test")) == pytest.approx(correct, abs=2e-3)


def test_published_weights_know_where_they_come_from() -> None:
    data_folder()
    source = model("cifar_resnet20")
    assert source.pretrained()
    assert source.identity()["sha256"].startswith("12fca82f")
    net = built("cifar_resnet20")
    assert net.card.source == "resnet20-12fca82f.th"
    assert net.card.weights == weights_hash(net.net.state_dict())
    assert not net.training
    assert "checkpoint" not in registry.describe("model", "cifar_resnet20")


def test_published_weights_refuse_other_classes() -> None:
    data_folder()
    with pytest.raises(ModelError, match=r"weights for 10 classes, the data has 43;.*checkpoint: null"):
        built("cifar_resnet20", num_classes=43)


def test_converted_weights_are_the_same(tmp_path: Path, x: Tensor) -> None:
    from siegebench.zoo.cifar_resnet import convert

    folder = data_folder()
    hashed = convert(folder / "weights" / "resnet20-12fca82f.th", tmp_path / "r20.safetensors")
    assert hashed == weights_hash(load_weights(tmp_path / "r20.safetensors"))
    twin = built({"name": "cifar_resnet20", "checkpoint": str(tmp_path / "r20.safetensors")})
    assert torch.equal(twin(x), built("cifar_resnet20")(x))


@pytest.mark.usefixtures("no_data")
def test_weights_that_are_missing_or_another_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"resnet20-12fca82f\.th not found.*SIEGEBENCH_DATA=FOLDER"):
        built("cifar_resnet20")
    net = built({"name": "cifar_resnet20", "checkpoint": None})
    path = tmp_path / "resnet20-00000000.safetensors"
    save_weights(path, net.net.state_dict())
    with pytest.raises(ModelError, match="its name says 00000000: a damaged download"):
        built({"name": "cifar_resnet20", "checkpoint": str(path)})
    plain = path.rename(tmp_path / "mine.safetensors")
    assert built({"name": "cifar_resnet20", "checkpoint": str(plain)}).num_classes == 10
    with pytest.raises(ModelError, match="weights of another architecture: 0 tensors missing"):
        built({"name": "cifar_resnet20", "depth": 20, "checkpoint": str(bigger(tmp_path))})


def bigger(folder: Path) -> Path:
    net = built({"name": "cifar_resnet20", "depth": 32, "checkpoint": None})
    save_weights(folder / "deep.safetensors", net.net.state_dict())
    return folder / "deep.safetensors"


def test_weights_and_normalisation_are_found_within_a_checkpoint(tmp_path: Path, x: Tensor) -> None:
    net = built({"name": "cifar_resnet20", "checkpoint": None}).net
    inside = {f"1.{k}": v for k, v in net.state_dict().items()}
    inside |= {"0.mu": torch.full((1, 3, 1, 1), 0.25), "0.sigma": torch.full((1, 3, 1, 1), 2.0)}
    torch.save({"model_ema": inside, "args": {"lr": 0.1}}, tmp_path / "w.pth")
    found = built({"name": "cifar_resnet20", "checkpoint": str(tmp_path / "w.pth"), "ema": True})
    torch.testing.assert_close(found(x), net.eval()((x - 0.25) / 2))
    assert found.card.source == "w.pth (from model_ema.1; normalisation from model_ema.0.mu and model_ema.0.sigma)"


def test_without_a_checkpoint_it_is_trained() -> None:
    source = model({"name": "cifar_resnet20", "checkpoint": None})
    assert not source.pretrained()
    assert source.identity() == {}
    net = source.build(num_classes=43, size=32)
    one, same, other = (weights_hash(net.fresh(seed).state_dict()) for seed in (1, 1, 2))
    assert one == same != other
