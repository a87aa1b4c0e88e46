"""Classifiers of torchvision: names, weights from a file or its cache, and the preprocessing of these weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from siegebench import registry
from siegebench.errors import ConfigError, ModelError

from .building import built, model

ARCH = "shufflenet_v2_x0_5"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture
def x() -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def original(classes: int) -> nn.Module:
    from torchvision.models import get_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net: nn.Module = get_model(ARCH, weights=None, num_classes=classes)
    return net.eval()


def normalised(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    return (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def test_names_of_torchvision() -> None:
    assert registry.describe("model", f"torchvision/{ARCH}")["name"] == f"torchvision/{ARCH}"
    with pytest.raises(ConfigError, match=r"torchvision has no classifier 'resnet19'\. Did you mean resnet1"):
        model("torchvision/resnet19")
    with pytest.raises(
        ConfigError, match=r"torchvision/resnet50 has no weights 'IMAGENET1K_V3'\. Did you mean IMAGENET"
    ):
        model("torchvision/resnet50.IMAGENET1K_V3")
    with pytest.raises(ConfigError, match="a tag and a checkpoint both name weights"):
        model({"name": "torchvision/resnet50.IMAGENET1K_V2", "checkpoint": "x.pth"})


def test_names_read_from_the_source_are_all() -> None:
    from siegebench.zoo.torchvision_model import TorchvisionModel
    from torchvision import models

    assert TorchvisionModel.targets() == set(models.list_models(module=models))


def test_an_untrained_network_takes_images_as_they_are(x: Tensor) -> None:
    source = model(f"torchvision/{ARCH}")
    assert not source.pretrained()
    net = built(f"torchvision/{ARCH}", num_classes=7)
    assert net.size is None
    assert torch.equal(net(x), net.net((x - 0.5) / 0.5))


def test_a_checkpoint_with_the_preprocessing_of_torchvision(tmp_path: Path, x: Tensor) -> None:
    net = original(7)
    torch.save({"model": net.state_dict()}, tmp_path / "mine.pth")
    spec = {"name": f"torchvision/{ARCH}", "checkpoint": str(tmp_path / "mine.pth")}
    loaded = built(spec, num_classes=7)
    assert loaded.size is None
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), net(normalised(x, MEAN, STD)), atol=1e-5, rtol=0)
        other = built({**spec, "input_size": 64, "mean": [0.5] * 3, "std": [0.25] * 3}, num_classes=7)
        resized = nn.functional.interpolate(x, (64, 64), mode="bilinear", antialias=True)
        torch.testing.assert_close(other(x), net((resized - 0.5) / 0.25), atol=1e-5, rtol=0)
    with pytest.raises(ModelError, match="weights for 7 classes, the data has 9"):
        built(spec, num_classes=9)


def test_the_name_of_a_published_file_says_its_preprocessing() -> None:
    from siegebench.zoo.torchvision_model import TorchvisionModel

    named = TorchvisionModel(target="vit_b_16", checkpoint="vit_b_16_swag-9ac1b537.pth")._own_weights()[0]
    assert named.name == "IMAGENET1K_SWAG_E2E_V1"
    assert named.transforms().crop_size == [384]
    other, published = TorchvisionModel(target="vit_b_16", checkpoint="mine.pth")._own_weights()
    assert (other.name, published) == ("IMAGENET1K_V1", False)


def test_a_tag_reads_the_cache_of_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, x: Tensor) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    spec = f"torchvision/{ARCH}.IMAGENET1K_V1"
    with pytest.raises(
        ModelError, match=r"no such file; let torchvision download it: python -c .*weights='IMAGENET1K_V1'"
    ):
        built(spec, num_classes=1000)
    with pytest.raises(ModelError, match="no such file"):
        model(spec).identity()
    (tmp_path / "checkpoints").mkdir()
    net = original(1000)
    path = tmp_path / "checkpoints" / "shufflenetv2_x0.5-f707e7126e.pth"
    torch.save(net.state_dict(), path)
    assert set(model(spec).identity()) == {"sha256"}
    resized = nn.functional.interpolate(x, (224, 224), mode="bilinear", antialias=True)
    with torch.no_grad():
        expected = net(normalised(resized, MEAN, STD))
        torch.testing.assert_close(built(spec, num_classes=1000)(x), expected, atol=1e-5, rtol=0)
