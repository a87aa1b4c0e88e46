"""Models: published numbers come out, timm's names work offline, and wrong weights are refused before anything runs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from siegebench import registry
from siegebench.classifier import Network
from siegebench.data import ImageSet, stratified
from siegebench.draws import derive_seed
from siegebench.errors import ConfigError, ModelError
from siegebench.train import Recipe, accuracy, train
from siegebench.types import ModelSource
from siegebench.weights import load_weights, save_weights, weights_hash
from tests.kit import data_folder


def model(spec: Any) -> ModelSource:
    built = registry.build("model", spec)
    assert isinstance(built, ModelSource)
    return built


def built(spec: Any, num_classes: int = 10, size: int = 32) -> Network:
    net = model(spec).build(num_classes=num_classes, size=size)
    assert isinstance(net, Network)
    return net


def load(name: str, split: str) -> ImageSet:
    return registry.build("dataset", name).load(split)  # type: ignore[attr-defined]


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SIEGEBENCH_DATA", raising=False)


@pytest.fixture
def x() -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


# ------------------------------------------------------------------------------------------------------- cifar_resnet


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


def test_without_a_checkpoint_it_is_trained() -> None:
    source = model({"name": "cifar_resnet20", "checkpoint": None})
    assert not source.pretrained()
    assert source.identity() == {}
    net = source.build(num_classes=43, size=32)
    one, same, other = (weights_hash(net.fresh(seed).state_dict()) for seed in (1, 1, 2))
    assert one == same != other


# --------------------------------------------------------------------------------------------------------- timm: names


def test_names_of_timm() -> None:
    assert registry.describe("model", "timm/resnet18.a1_in1k")["name"] == "timm/resnet18.a1_in1k"
    with pytest.raises(ConfigError, match=r"timm has no architecture 'resnet19'\. Did you mean resnet18"):
        model("timm/resnet19")
    with pytest.raises(ConfigError, match=r"timm/resnet18 has no weights 'a4_in1k'\. Did you mean a\d_in1k"):
        model("timm/resnet18.a4_in1k")
    with pytest.raises(ConfigError, match=r"finetune needs `architecture\.tag`"):
        model({"name": "timm/resnet18", "finetune": True})
    with pytest.raises(ConfigError, match=r"model_args\.pretrained is set by siegebench"):
        model({"name": "timm/resnet18", "model_args": {"pretrained": True}})


def test_names_read_from_the_source_exist() -> None:
    import timm
    from siegebench.zoo.timm_model import _in_source

    architectures, tags = _in_source()
    assert len(architectures) > 500
    assert architectures <= set(timm.list_models())
    known = {t for a in architectures for t in timm.models.list_pretrained(f"{a}.*")}
    assert len(tags & known) > 500


def test_networks_that_users_register_are_known() -> None:
    import timm
    from timm.models import register_model

    def siege_test_net(pretrained: bool = False, **kwargs: Any) -> torch.nn.Module:
        return timm.create_model("test_resnet", **{k: v for k, v in kwargs.items() if k == "num_classes"})

    siege_test_net.__module__ = __name__
    register_model(siege_test_net)
    assert built("timm/siege_test_net", num_classes=4).num_classes == 4


# ------------------------------------------------------------------------------------------------- timm: architectures


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext"])
def test_untrained_networks_take_images_as_they_are(name: str, x: Tensor) -> None:
    net = built(f"timm/{name}", num_classes=7)
    assert net(x).shape == (2, 7)
    assert net.features(x).dim() == 2
    assert torch.equal(net(x), net.net((x - 0.5) / 0.5))
    assert not torch.equal(net.fresh(1)(x), net(x))


def test_arguments_reach_timm_and_wrong_ones_are_refused() -> None:
    small = built({"name": "timm/test_convnext", "model_args": {"depths": [1, 1, 1, 1]}})
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in built("timm/test_convnext").parameters())
    with pytest.raises(ModelError, match=r"timm cannot build test_convnext with .*no_such"):
        built({"name": "timm/test_convnext", "model_args": {"no_such": 1}})


def test_normalisation_and_size_can_be_set(x: Tensor) -> None:
    spec = {"name": "timm/test_resnet", "input_size": 64, "mean": [0.1, 0.2, 0.3], "std": [1, 2, 4]}
    net = built(spec)
    seen: list[Tensor] = []
    net.net.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    net(torch.full_like(x, 0.5))
    assert seen[0].shape == (2, 3, 64, 64)
    torch.testing.assert_close(seen[0][0, :, 5, 5], torch.tensor([0.4, 0.15, 0.05]))


# ------------------------------------------------------------------------------------------------------- timm: weights


def test_tag_that_is_not_in_the_cache_fails_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    source = model("timm/test_resnet.r160_in1k")
    start = time.monotonic()
    with pytest.raises(ModelError, match=r"not in the hub's cache .*checkpoint: FILE.*timm/test_resnet \(no tag\)"):
        source.build(num_classes=1000, size=160)
    with pytest.raises(ModelError, match="not in the hub's cache"):
        source.identity()
    assert time.monotonic() - start < 15  # the hub's own client tries for most of a minute


def test_a_hub_that_does_not_answer_is_noticed_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same without the offline switch, as on a machine behind a wall."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(ModelError, match="not in the hub's cache"):
        built("timm/test_resnet.r160_in1k", num_classes=1000)
    assert time.monotonic() - start < 15


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Network:
    """A hub cache with weights of test_resnet.r160_in1k (random ones) as a download leaves it."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    net = built("timm/test_resnet", num_classes=1000)
    repo = tmp_path / "hub" / "models--timm--test_resnet.r160_in1k"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    save_weights(repo / "snapshots" / ("0" * 40) / "model.safetensors", net.net.state_dict())
    return net


def test_published_weights_come_from_the_cache_with_their_preprocessing(published: Network, x: Tensor) -> None:
    source = model("timm/test_resnet.r160_in1k")
    assert source.pretrained()
    assert len(source.identity()["sha256"]) == 64
    net = built("timm/test_resnet.r160_in1k", num_classes=1000)
    assert weights_hash(net.net.state_dict()) == weights_hash(published.net.state_dict()) == net.card.weights
    assert net.size == (160, 160)  # images are resized inside to what the weights were trained for
    assert net.card.preprocessing["mean"] == (0.5, 0.5, 0.5)
    assert net.card.source == "timm/test_resnet.r160_in1k"
    assert net(x).shape == (2, 1000)


def test_published_weights_of_timm_refuse_other_classes_unless_finetuned(published: Network) -> None:
    with pytest.raises(ModelError, match=r"weights for 1000 classes, the data has 10; .*finetune: true"):
        built("timm/test_resnet.r160_in1k")
    source = model({"name": "timm/test_resnet.r160_in1k", "finetune": True})
    assert not source.pretrained()
    net = source.build(num_classes=10, size=32)
    start = net.fresh(1).state_dict()
    body = {k: v for k, v in published.state_dict().items() if "fc" not in k}
    assert all(torch.equal(start[k], v) for k, v in body.items())
    assert start["net.fc.weight"].shape[0] == 10
    assert not torch.equal(start["net.fc.weight"], net.fresh(2).state_dict()["net.fc.weight"])


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_checkpoint_of_a_user(tmp_path: Path, x: Tensor, suffix: str) -> None:
    trained = built("timm/test_resnet", num_classes=5)
    path = tmp_path / f"mine.{suffix}"
    if suffix == "pth":
        torch.save({"state_dict": {f"module.{k}": v for k, v in trained.net.state_dict().items()}}, path)
    else:
        save_weights(path, trained.net.state_dict())
    spec = {"name": "timm/test_resnet", "checkpoint": str(path)}
    assert model(spec).pretrained()
    assert len(model(spec).identity()["sha256"]) == 64
    net = built(spec, num_classes=5)
    assert torch.equal(net(x), trained(x))
    assert not torch.equal(net.fresh(0)(x), trained(x))
    with pytest.raises(ModelError, match="weights for 5 classes, the data has 10"):
        built(spec)
    with pytest.raises(ModelError, match="weights of another architecture"):
        built({"name": "timm/test_convnext", "checkpoint": str(path)}, num_classes=5)


def test_checkpoints_that_are_broken(tmp_path: Path) -> None:
    state = built("timm/test_resnet").net.state_dict()
    with pytest.raises(ModelError, match="not found; looked for"):
        built({"name": "timm/test_resnet", "checkpoint": str(tmp_path / "absent.pth")})
    save_weights(tmp_path / "nan.safetensors", state | {"fc.bias": torch.full((10,), float("nan"))})
    with pytest.raises(ModelError, match=r"fc\.bias contains NaN"):
        built({"name": "timm/test_resnet", "checkpoint": str(tmp_path / "nan.safetensors")})
    save_weights(tmp_path / "cut.safetensors", state)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(cut.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"cut\.safetensors: not a readable"):
        built({"name": "timm/test_resnet", "checkpoint": str(cut)})


def test_published_weights_that_are_not_finite_are_refused(published: Network, tmp_path: Path) -> None:
    (file,) = (tmp_path / "hub").rglob("model.safetensors")
    save_weights(file, published.net.state_dict() | {"fc.bias": torch.full((1000,), float("inf"))})
    with pytest.raises(ModelError, match=r"fc\.bias contains NaN or infinite"):
        built("timm/test_resnet.r160_in1k", num_classes=1000)


def test_card_parameters_reach_a_key() -> None:
    plain = registry.describe("model", "byobnet_tiny")
    assert plain["target"] == "test_byobnet"
    assert plain["recipe"]["epochs"] == model("byobnet_tiny").recipe.epochs  # type: ignore[attr-defined]
    assert not model("byobnet_tiny").pretrained()


# -------------------------------------------------------------------------------------------------------------- trained


def after_training(
    name: str, data: str, seed: int = 0, recipe: Recipe | None = None, count: int | None = None
) -> tuple[Network, float]:
    source = model(name)
    train_set, test_set = load(data, "train"), load(data, "test")
    if count is not None:
        train_set = train_set.select(stratified(train_set, count, 0))
    net = source.build(num_classes=train_set.num_classes, size=train_set.images.shape[-1])
    net = net.fresh(derive_seed(seed, "weights"))  # type: ignore[assignment]
    train(net, train_set, recipe or source.recipe, derive_seed(seed, "train"))  # type: ignore[attr-defined]
    return net, accuracy(net, test_set)  # type: ignore[return-value]


def test_a_small_network_learns_digits_and_repeats_itself() -> None:
    short = Recipe(epochs=4, batch=32, lr=5e-3)
    (one, right), (two, again) = (after_training("byobnet_tiny", "digits", recipe=short, count=640) for _ in range(2))
    assert right == again > 0.6
    assert weights_hash(one.state_dict()) == weights_hash(two.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["byobnet_tiny", "convnext_tiny32", "efficientnet_tiny"])
def test_small_networks_reach_their_accuracy_on_digits(name: str) -> None:
    assert after_training(name, "digits")[1] > 0.95
