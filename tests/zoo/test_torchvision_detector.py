"""torchvision's detectors: boxes of vehicles without suppression, gradients, and weights that must be there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from siegebench.zoo.torchvision_detector import LABELS, TorchvisionDetector
from torchvision.models import get_model

from siegebench import registry
from siegebench.errors import ConfigError, ModelError
from siegebench.types import ObjectDetectorSource
from siegebench.weights import save_weights

SMALL = "ssdlite320_mobilenet_v3_large"


def source(**given: object) -> TorchvisionDetector:
    entry = registry.build(ObjectDetectorSource, {"name": "torchvision_detector", **given})
    assert isinstance(entry, TorchvisionDetector)
    return entry


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file with weights of the small one, which nobody has trained."""
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = get_model(SMALL, weights=None, weights_backbone=None, num_classes=LABELS)
    save_weights(path, net.state_dict())
    return str(path)


def test_boxes_are_those_of_torchvision_without_suppression(untrained: str) -> None:
    labels = list(range(1, 60))
    model = source(checkpoint=untrained, vehicles=labels).detector(size=96)
    x = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0), requires_grad=True)
    found = model.find(x)
    with torch.no_grad():
        theirs = model.net(list(x))
    for i, one in enumerate(theirs):
        mine = one["labels"] < 60
        assert 0 < int(mine.sum()) < len(mine)
        assert int((found.scores[i] > 0).sum()) == int(mine.sum())
        assert torch.equal(found.boxes[i, : int(mine.sum())], one["boxes"][mine])
    assert found.boxes[..., 0::2].amax() <= 96
    assert found.boxes[..., 1::2].amax() <= 64
    (gradient,) = torch.autograd.grad(model(x)[:, 1].sum(), x)
    assert (gradient.flatten(1).abs().amax(dim=1) > 0).all()


def test_an_image_without_vehicles_has_a_gradient_of_zero(untrained: str) -> None:
    model = source(checkpoint=untrained, boxes=1, vehicles=[90]).detector(size=64)
    x = torch.zeros(1, 3, 64, 64, requires_grad=True)
    z = model(x)
    assert z.argmax(dim=1).item() == 0
    (gradient,) = torch.autograd.grad(z.sum(), x)
    assert gradient.isfinite().all()


def test_weights_in_the_cache_of_torchvision_are_used(untrained: str, tmp_path: Path) -> None:
    torch.hub.set_dir(str(tmp_path))
    try:
        with pytest.raises(ModelError, match=r"coco-a79551df.pth: no such file; give `checkpoint: PATH`, or let torch"):
            source().identity()
        folder = tmp_path / "checkpoints"
        folder.mkdir()
        (folder / "ssdlite320_mobilenet_v3_large_coco-a79551df.pth").write_bytes(b"damaged")
        with pytest.raises(ModelError, match="its name says a79551df: a damaged download"):
            source().identity()
    finally:
        torch.hub._hub_dir = None
    assert source(checkpoint=untrained).identity().keys() == {"sha256"}


def test_weights_of_another_network_are_refused(untrained: str) -> None:
    with pytest.raises(ModelError):
        source(checkpoint=untrained, architecture="fasterrcnn_mobilenet_v3_large_320_fpn").detector(size=64)


def test_the_background_is_no_vehicle() -> None:
    with pytest.raises(ConfigError, match="vehicles: expected labels of COCO, 1 to 90"):
        source(vehicles=[0, 3])
