"""Residual networks for 32x32 images, as robust training uses them, with a checkpoint or trained."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from siegebench.classifier import ModelCard, Network
from siegebench.data import Size
from siegebench.errors import ModelError
from siegebench.train import Recipe

from . import _cifar_nets
from ._checkpoint import Channels, Checkpointed

RECIPE = Recipe(epochs=20, lr=5e-3, augment="crop_flip")


@dataclass(frozen=True, kw_only=True)
class CifarNet(Checkpointed):
    """A residual network for small images, with the names of weights of the common implementations.

    Random: the initial weights of a network that is trained; the harness seeds them.

    Attributes:
        architecture: `wrn-DEPTH-WIDTH` (Zagoruyko and Komodakis 2016), `resnet-18`, `resnet-50`, `preact-18` (He et al.
            2016), `preact-18-raw` (shortcuts before the activation, no last batch norm), or, with SiLU and other
            padding, `swish-wrn-DEPTH-WIDTH` (Gowal et al. 2020) and `swish-preact-18` (Rebuffi et al. 2021).
        mean, std: normalisation of pixels in [0, 1]; default: none for a checkpoint, as robust training usually has it,
            and 0.5 for a network that is trained here.
        recipe: for training.
    """

    architecture: str = "wrn-10-1"
    mean: Channels | None = None
    std: Channels | None = None
    recipe: Recipe = RECIPE

    def __post_init__(self) -> None:
        super().__post_init__()
        _cifar_nets.check(self.architecture)
        if (self.mean is None) != (self.std is None):
            raise ValueError("give both mean and std, or neither")

    def build(self, *, num_classes: int, size: Size) -> Network:
        side = size if isinstance(size, int) else min(size)
        if side < 8:
            raise ModelError(f"{self.architecture}: images of {size} pixels; it needs 8 or more")
        make = partial(_cifar_nets.make, self.architecture, num_classes)
        net = make()
        given = self.mean is not None
        usual = ((0.0,) * 3, (1.0,) * 3) if self.pretrained() else ((0.5,) * 3, (0.5,) * 3)
        mean, std = self.mean or usual[0], self.std or usual[1]
        mean, std, source, digest = self.loaded(net, mean, std, given=given)
        card = ModelCard(
            name=self.architecture, architecture=self.architecture, source=source, weights=digest,
            preprocessing={"mean": mean, "std": std},
        )  # fmt: skip
        return Network(net, num_classes=num_classes, mean=mean, std=std, card=card, rebuild=make).eval()
