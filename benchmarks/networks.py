"""Victims of the benchmarks: networks that other people trained, with correctly classified images of `cifar10_jpeg`.

All but `resnet20` are small networks of the verifier alpha-beta-CROWN (BSD-3): `cnn_a`, `resnet2b` and `resnet4b` are
trained adversarially, `oval_deep` with provable bounds, `marabou` plainly.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from bench import Scene


def _scene(model: str, images: int) -> Scene:
    return Scene.load(model, "cifar10_jpeg", images)


# the first images of the test set that each network classifies correctly, from at most this many
NETWORKS: dict[str, Callable[[int], Scene]] = {
    "resnet20": partial(_scene, "cifar_resnet20"),
    "marabou": partial(_scene, "verified_net.marabou_medium"),
    **{name: partial(_scene, f"verified_net.{name}") for name in ("cnn_a", "oval_deep", "resnet2b", "resnet4b")},
}
