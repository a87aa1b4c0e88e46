"""The classifiers of torchvision, with a file of weights, or trained."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from siegebench.classifier import ModelCard, Network
from siegebench.data import Size
from siegebench.errors import ModelError, did_you_mean
from siegebench.train import Recipe

from ._checkpoint import Channels, Checkpointed
from ._files import check_name
from ._whole import as_square, shown

RECIPE = Recipe()
HALF: Channels = (0.5, 0.5, 0.5)


@dataclass(frozen=True, kw_only=True)
class TorchvisionModel(Checkpointed):
    """A classifier of torchvision (BSD-3-Clause). Nothing is downloaded.

    `torchvision/resnet50` is trained with the recipe, or takes the weights of `checkpoint: FILE`.
    `torchvision/resnet50.IMAGENET1K_V2` takes torchvision's own weights from its cache.

    The normalisation is that of torchvision's own weights, also for a checkpoint of yours, unless mean and std are
    given or lie in the file; a network that is trained here normalises with 0.5. Images are resized only for
    torchvision's own weights, to the size that they are for: those of a tag, or of a checkpoint with the name of
    torchvision's file.

    Random: the initial weights of a network that is trained; the harness seeds them.

    Attributes:
        target: `architecture` or `architecture.TAG`, as torchvision names them.
        input_size: the model resizes images to this size; 0 for never.
        mean, std: normalisation in the model.
        recipe: for training.
    """

    target: str
    input_size: int | None = None
    mean: Channels | None = None
    std: Channels | None = None
    recipe: Recipe = RECIPE

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.input_size is not None and self.input_size < 0:
            raise ValueError(f"input_size: expected a size, or 0 for never, found {self.input_size}")
        if (self.mean is None) != (self.std is None):
            raise ValueError("give both mean and std, or neither")
        if self.tag and self.checkpoint is not None:
            raise ValueError("a tag and a checkpoint both name weights; give one of them")
        check(self.architecture, self.tag)

    @staticmethod
    def targets() -> frozenset[str]:
        """The names that can follow `torchvision/`, for suggestions."""
        return _architectures()

    @property
    def architecture(self) -> str:
        return self.target.partition(".")[0]

    @property
    def tag(self) -> str:
        return self.target.partition(".")[2]

    def pretrained(self) -> bool:
        return bool(self.tag) or super().pretrained()

    def identity(self) -> dict[str, Any]:
        return self._filled().identity() if self.tag else super().identity()

    def build(self, *, num_classes: int, size: Size) -> Network:
        make = partial(_create, self.architecture, num_classes)
        net = make()
        own, published = self._own_weights()
        mean, std, inside = HALF, HALF, None
        if self.pretrained() and own is not None:
            wanted = own.transforms()
            mean, std = tuple(wanted.mean), tuple(wanted.std)
            inside = int(wanted.crop_size[0]) if published else None
        given = self.mean is not None
        mean, std = self.mean or mean, self.std or std
        inside = inside if self.input_size is None else self.input_size or None
        mean, std, source, digest = self._filled().loaded(net, mean, std, given=given)
        card = ModelCard(
            name=f"torchvision/{self.target}", architecture=self.architecture, source=source or "torchvision",
            weights=digest, preprocessing={"mean": mean, "std": std, "input_size": shown(inside or None)},
        )  # fmt: skip
        return Network(
            net, num_classes=num_classes, mean=mean, std=std, size=as_square(inside), card=card, rebuild=make
        ).eval()

    def _filled(self) -> Checkpointed:
        """With the file of the tag as the checkpoint."""
        return replace(self, target=self.architecture, checkpoint=str(self._cached())) if self.tag else self

    def _own_weights(self) -> tuple[Any, bool]:
        """(the weights of torchvision whose transforms are used, None for an architecture without any; whether these
        are the weights of this network)
        """
        weights = _weights(self.architecture)
        if self.tag:
            return weights[self.tag], True
        name = Path(self.checkpoint or "").name
        same = next((w for w in weights if _file(w) == name), None)
        return (same or next(iter(weights), None)), same is not None

    def _cached(self) -> Path:
        path = Path(torch.hub.get_dir()) / "checkpoints" / _file(self._own_weights()[0])
        if not path.is_file():
            get = f"import torchvision; torchvision.models.get_model('{self.architecture}', weights='{self.tag}')"
            raise ModelError(
                f'{path}: no such file; let torchvision download it: python -c "{get}"; or give '
                f"torchvision/{self.architecture} with `checkpoint: PATH`"
            )
        check_name(path)
        return path


def check(architecture: str, tag: str) -> None:
    """Refuse names that torchvision does not have.

    Raises:
        ValueError: with the nearest name.
    """
    names = _architectures()
    if architecture not in names:
        raise ValueError(f"torchvision has no classifier {architecture!r}. {did_you_mean(architecture, names)}")
    tags = [w.name for w in _weights(architecture)] if tag else []
    if tag and tag not in tags:
        raise ValueError(f"torchvision/{architecture} has no weights {tag!r}. {did_you_mean(tag, tags)}")


@cache
def _architectures() -> frozenset[str]:
    """The classifiers in torchvision's source; importing torchvision would take seconds in every check of a suite."""
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        return frozenset()
    text = "".join(p.read_text(encoding="utf-8") for p in (Path(found.origin).parent / "models").glob("*.py"))
    return frozenset(re.findall(r"@register_model\(\)(?:(?!\ndef ).)*\ndef (\w+)", text, re.DOTALL))


def _weights(architecture: str) -> Any:
    from torchvision.models import get_model_weights

    return get_model_weights(architecture)


def _file(weights: Any) -> str:
    return str(weights.url).rpartition("/")[2]


def _create(architecture: str, num_classes: int) -> nn.Module:
    from torchvision.models import get_model

    # the slow and warned-about initialisation of these two is not that of their weights
    options = {"init_weights": True} if architecture in ("googlenet", "inception_v3") else {}
    net: nn.Module = get_model(architecture, weights=None, num_classes=num_classes, **options)
    return net
