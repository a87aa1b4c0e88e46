"""A model and images passed from Python: an own copy of the model, checks that both fit, and their descriptions."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from siegebench.artifacts import fingerprint
from siegebench.classifier import Classifier, ModelCard, Network, copied
from siegebench.data import IMAGE, ImageSet
from siegebench.errors import ConfigError, ModelError, shortened
from siegebench.identity import answers_of, code_of
from siegebench.inputs import as_images, as_labels, as_tensor, blamed, check_weights, checked, image_kind, unwrapped
from siegebench.inventory import NamedData

CHECKED = 16  # images on which a model is tried


class _Given(Network):
    """A plain module passed from Python, which says nothing about its images."""


def own(model: nn.Module, name: str, num_classes: int | None) -> tuple[Classifier, dict[str, Any]]:
    """(a copy of a model on the CPU, in eval mode and float32; its description without its answers)

    Raises:
        ModelError: when it cannot be copied.
    """
    plain = unwrapped(model)
    if not isinstance(plain, nn.Module):
        raise ModelError(f"expected a torch.nn.Module that maps images to logits, found {shortened(model)}")
    check_weights(plain)
    try:
        with torch.no_grad():  # TorchScript would keep the history of a conversion
            mine: nn.Module = copied(plain).cpu().float()
    except Exception as error:
        raise ModelError(
            f"the model cannot be copied ({type(error).__name__}: {str(error)[:120]}); "
            "sb.evaluate attacks a copy, so that yours does not change"
        ) from error
    mine.eval()
    for parameter in mine.parameters():  # `requires_grad_` of a module fails for TorchScript
        parameter.requires_grad_(False)
    described = {"name": name, "version": 1, "code": code_of(mine)}
    if not isinstance(mine, Classifier):
        # one mean for all channels, so that the images may have any number of them
        mine = _Given(mine, num_classes=num_classes or 0, mean=(0.0,), std=(1.0,), card=ModelCard(name=name))
        mine.eval()
    return mine, {**described, "weights": fingerprint(mine)}


def fitted(model: Classifier, data: ImageSet) -> tuple[Classifier, str]:
    """(the model for images of this kind, sharing its weights; a short hash of what it does on some of them)

    Raises:
        ModelError: when the model does not return one finite logit for each class.
    """
    x = data.pixels(slice(0, CHECKED))
    own_kind, kind = model.kind, data.kind
    if not isinstance(model, _Given) and (own_kind.name, own_kind.channels, own_kind.box) != (
        kind.name, kind.channels, kind.box,
    ):  # fmt: skip
        found, wanted = (f"{k.name} with {k.channels} channels in {k.box}" for k in (own_kind, kind))
        raise ModelError(f"the model takes {found}, {data.name} is {wanted}")
    ready = copy.copy(model)
    ready.kind = kind
    try:
        with torch.no_grad():
            ready = checked(ready, x)
    except ModelError as error:
        raise ModelError(f"{data.name}: {error}") from error.__cause__
    if ready.num_classes != data.num_classes:
        raise ModelError(
            f"the model has {ready.num_classes} classes, {data.name} has {data.num_classes}; expected one logit for "
            "each class"
        )
    with blamed(ready, x):  # a model may fail only when a gradient is asked for
        return ready, answers_of(ready, data)


# --------------------------------------------------------------------------------------------------------------- images


def images(model: Classifier, x: Any, y: Any, data: Any) -> NamedData:
    """Images and labels passed from Python, named by their content: `own-` and eight digits of their digest.

    8-bit images are stored as such; all others keep their values as float32.

    Args:
        model: tells the number of classes.
        x, y: images [n, C, H, W] in [0, 1] and labels [n]; tensors or arrays.
        data: in their place, an ImageSet, or batches or pairs of (images, labels), such as a DataLoader.

    Raises:
        ConfigError: for anything else, with what was found and what is expected.
    """
    if data is not None and (x is not None or y is not None):
        raise ConfigError("data: leave it out when x and y are given")
    if data is None and (x is None or y is None):
        raise ConfigError(f"{'y' if y is None else 'x'}: missing; x are the images, y their labels")
    found = data if isinstance(data, ImageSet) else _image_set(model, *((x, y) if data is None else _gathered(data)))
    name = f"own-{found.digest[:8]}"
    description = {
        "name": name,
        "source": {"name": name, "version": 1},
        "split": "test",
        "count": len(found),
        "digest": found.digest,
        "classes": found.num_classes,
    }
    if found.kind != IMAGE:
        description["kind"] = found.kind.name
    return NamedData(replace(found.in_memory(), name=name), description)


def _image_set(model: Classifier, x: Any, y: Any) -> ImageSet:
    pixels = as_images(x).cpu().float().clone()
    if len(pixels) == 0:
        raise ConfigError("images: expected at least one, found none")
    if not model.num_classes:
        with torch.no_grad():
            checked(model, pixels[:2])
    classes = model.num_classes
    labels = as_labels(y, len(pixels), classes).cpu()
    kind = image_kind(pixels.shape[1])
    stored = kind.store(pixels)
    if not torch.equal(kind.load(stored), pixels):  # off the 8-bit grid
        kind, stored = replace(kind, dtype=torch.float32, grid=None), pixels
    return ImageSet(stored, labels, torch.arange(len(pixels)), classes, "images passed from Python", kind=kind)


def _gathered(data: Any) -> tuple[Tensor, Tensor]:
    """All images and labels of an iterable of batches, or of a dataset of single images."""
    shapes = "expected an ImageSet, or batches of (images, labels) such as a DataLoader"
    if isinstance(data, (Tensor, str, bytes, dict)) or not (hasattr(data, "__iter__") or hasattr(data, "__getitem__")):
        raise ConfigError(f"data: {shapes}; found a {type(data).__name__}")
    xs, ys = [], []
    if not hasattr(data, "__iter__") and hasattr(data, "__len__"):  # a dataset need not say where it ends
        data = map(data.__getitem__, range(len(data)))
    for item in data:
        if isinstance(item, Mapping):
            keys = shortened(list(item))
            raise ConfigError(
                f"data: {shapes}; an item is a dict with {keys}: use ((b[IMAGES], b[LABELS]) for b in data)"
            )
        if not isinstance(item, (tuple, list)) or len(item) < 2:
            raise ConfigError(f"data: {shapes}; an item is a {type(item).__name__}, not (images, labels)")
        x, y = (as_tensor(item[i], name).detach().cpu() for i, name in enumerate(("images", "labels")))
        x = x[None] if x.dim() == 3 and y.numel() == 1 else x
        y = y.reshape(1) if y.dim() == 0 else y
        if x.dim() and len(x) != len(y):
            raise ConfigError(
                f"data: an item has {len(x)} images and {len(y)} labels; expected one label for each image"
            )
        xs.append(x)
        ys.append(y)
    if not xs:
        raise ConfigError("data: no images; a DataLoader that was used up, or an empty dataset")
    shapes_found = {tuple(x.shape[1:]) for x in xs}
    if len(shapes_found) > 1:
        raise ConfigError(f"data: images of the shapes {shortened(sorted(shapes_found))}; resize them to one")
    return torch.cat(xs), torch.cat(ys)
