"""timm's names work offline, its published weights and those of a user are checked before anything runs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from siegebench import registry
from siegebench.classifier import Network
from siegebench.errors import ConfigError, ModelError
from siegebench.weights import save_weights, weights_hash

from .building import built, model


@pytest.fixture
def x() -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


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


def test_tag_that_is_not_in_the_cache_fails_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    source = model("timm/test_resnet.r160_in1k")
    start = time.monotonic()
    with pytest.raises(ModelError, match=r"not in the hub's cache .*checkpoint: FILE.*timm/test_resnet \(no tag\)"):
        source.build(num_classes=1000, size=160)
    with pytest.raises(ModelError, match="not in the hub's cache"):
        source.identity()
    assert time.monotonic() - start < 30  # the hub's own client tries for most of a minute


def test_a_hub_that_does_not_answer_is_noticed_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same without the offline switch, as on a machine behind a wall."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(ModelError, match="not in the hub's cache"):
        built("timm/test_resnet.r160_in1k", num_classes=1000)
    assert time.monotonic() - start < 30


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


def test_weights_are_chosen_within_a_checkpoint(tmp_path: Path, x: Tensor) -> None:
    plain, averaged = (built("timm/test_resnet", num_classes=5) for _ in range(2))
    content = {
        "model": plain.net.state_dict(),
        "model_ema": averaged.net.state_dict(),
        "mean": [0.1] * 3,
        "std": [1] * 3,
    }
    torch.save(content, tmp_path / "w.pth")
    spec = {"name": "timm/test_resnet", "checkpoint": str(tmp_path / "w.pth")}
    shift = x - 0.1
    for more, wanted in (({}, plain), ({"ema": True}, averaged), ({"part": "model_ema"}, averaged)):
        net = built({**spec, **more}, num_classes=5)
        torch.testing.assert_close(net(x), wanted.net(shift))  # the normalisation comes from the file as well
        assert net.card.preprocessing["mean"] == (0.1, 0.1, 0.1)
    identities = [model({**spec, **more}).identity() for more in ({}, {"ema": True}, {"part": "model_ema"})]
    assert len({str(i) for i in identities}) == 3
    assert list(identities[0]) == ["sha256"]  # keys of cells without the choice stay as they were
    with pytest.raises(ModelError, match=r"you gave mean \(0\.5, 0\.5, 0\.5\)"):
        built({**spec, "mean": [0.5] * 3, "std": [0.5] * 3}, num_classes=5)
    with pytest.raises(ConfigError, match="ema chooses among the weights of a checkpoint; give `checkpoint: FILE`"):
        model({"name": "timm/test_resnet", "ema": True})


def test_names_without_their_family_are_suggested() -> None:
    import siegebench as sb

    for name, meant in (("resnet18", "timm/resnet18"), ("resnet18.a1_in1k", "timm/resnet18.a1_in1k")):
        with pytest.raises(ConfigError, match=rf"unknown model '{name}'\..* Did you mean {meant}\?"):
            sb.load_model(name)
    with pytest.raises(ConfigError, match=r"Did you mean timm/efficientnet_b0\?"):
        sb.load_model("eficientnet_b0")
    with pytest.raises(ConfigError, match=r"See `siegebench list models`\.$"):
        sb.load_model("nothing like it")


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
