"""Networks of others load as their authors stored them, and classify as well as their READMEs say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench import registry
from siegebench.checkpoints import load_checkpoint
from siegebench.classifier import Network
from siegebench.errors import ModelError
from siegebench.types import DataSource
from siegebench.weights import read_weights
from tests.kit import data_folder
from tests.published import NETWORKS, Published


def loaded(file: str) -> Network:
    known = NETWORKS[file]
    given = {} if len(known.mean) == 1 else {"mean": known.mean, "std": known.std}
    return load_checkpoint(known.make(), data_folder() / "weights" / file, **given)


def images(known: Published, count: int | None) -> tuple[Tensor, Tensor]:
    """The first test images, cut as the network wants them, and their labels."""
    if known.data == "mnist1000":
        held = np.load(data_folder() / "weights" / "alpha-beta-CROWN" / "mnist1000.npz")
        return torch.tensor(held["image"][:count, None] / 255.0).float(), torch.tensor(held["label"][:count])
    data = registry.build(DataSource, known.data).load("test")
    x, y, c = data.pixels(slice(0, count)), data.labels[:count], known.cut
    if c:
        x = F.interpolate(x[:, :, c:-c, c:-c], (32, 32), mode="bilinear", antialias=True, align_corners=False)
    return x, y


@torch.no_grad()
def accuracy(file: str, count: int | None) -> float:
    net, (x, y) = loaded(file), images(NETWORKS[file], count)
    return 100 * float(torch.cat([net(part).argmax(1) == labels for part, labels in _parts(x, y)]).float().mean())


def _parts(x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.split(500), y.split(500), strict=True))


CLASSIFIERS = [file for file, known in NETWORKS.items() if known.data]
QUICK = [file for file in CLASSIFIERS if "l0_inv" not in file and "l2_inv" not in file and "gtsrbtrojan" not in file]


@pytest.mark.parametrize("file", QUICK)
def test_published_networks_classify_some_images(file: str) -> None:
    correct, n = NETWORKS[file].correct / 100, 200
    assert abs(accuracy(file, n) / 100 - correct) < 3.5 * (correct * (1 - correct) / n) ** 0.5 + 0.01


@pytest.mark.slow
@pytest.mark.parametrize("file", CLASSIFIERS)
def test_published_networks_are_as_accurate_as_stated(file: str) -> None:
    assert accuracy(file, NETWORKS[file].count) == pytest.approx(NETWORKS[file].correct, abs=0.2)


def test_a_detector_is_filled_too() -> None:
    net = loaded("FastestDet/weight_AP05_0.253207_280-epoch.pth").net
    with torch.no_grad():
        out = net(torch.zeros(1, 3, 352, 352))
    assert out.shape == (1, 85, 22, 22)
    assert out[:, 0].amax() < 0  # objectness of a black image


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("I-BAU/mask.npy", "a single array of numpy"),
        ("NanoTrack/nanotrack_head_sim-opt.param", "the description of a network for ncnn"),
        ("NanoTrack/nanotrack_head_sim-opt.bin", "numbers without names, such as the .bin of ncnn"),
        ("yolox-nano/yoloxN.bin", "numbers without names, such as the .bin of ncnn"),
        ("coral-mobilenet/mobilenet_v1_0.25_128_quant.tflite", "a TensorFlow Lite network"),
        ("I-BAU/l0_inv.png", "an image"),
        ("FastestDet/coco.names", "not a weight file"),
    ],
)
def test_files_that_are_no_weights_of_torch_are_named(file: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read_weights(data_folder() / "weights" / file)


def test_networks_of_others_do_not_fit_one_another() -> None:
    made: dict[Callable[..., object], str] = {NETWORKS[file].make: file for file in CLASSIFIERS}
    for file in made.values():
        for make, other in made.items():
            if make is not NETWORKS[file].make:
                with pytest.raises(
                    ModelError, match=r"another architecture|this network expects|classes, the network has"
                ):
                    load_checkpoint(NETWORKS[other].make(), data_folder() / "weights" / file)


def test_sets_of_images_are_no_weights() -> None:
    path = Path("alpha-beta-CROWN/mnist1000.npz")
    with pytest.raises(ModelError, match=r"weights of another architecture.*Found image \(1000, 28, 28\), label"):
        load_checkpoint(NETWORKS["sinabs/mnist_params.pt"].make(), data_folder() / "weights" / path)
