"""A model and images passed from Python: an own copy of the model, checks that both fit, and their descriptions."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from siegebench.artifacts import fingerprint
from siegebench.classifier import Classifier, ModelCard, Network
from siegebench.data import IMAGE, ImageSet
from siegebench.draws import Draws
from siegebench.errors import ConfigError, ModelError, shortened
from siegebench.identity import answers_of, code_of
from siegebench.inventory import NamedData

CHECKED = 16  # images on which a model is tried


@contextmanager
def gradients() -> Iterator[None]:
    """Leave the caller's `inference_mode`, `no_grad` and `autocast`: inside, an attack has no or other gradients."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in {"cpu", "cuda" if torch.cuda.is_available() else "cpu"}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


class _Given(Network):
    """A plain module passed from Python, which says nothing about its images."""


def own(model: nn.Module, name: str, num_classes: int | None) -> tuple[Classifier, dict[str, Any]]:
    """(a copy of a model on the CPU, in eval mode and float32; its description without its answers)

    Raises:
        ModelError: when it cannot be copied.
    """
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        model = model.module
    try:
        with torch.no_grad():  # copies of TorchScript would keep their history
            mine = copy.deepcopy(model, _detached(model)).cpu().float()
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


def _detached(model: nn.Module) -> dict[int, Any]:
    """Copies of the tensors that `deepcopy` refuses or copies as they are: with a graph, or made in inference mode."""
    copies: dict[int, Any] = {}

    def visit(value: Any) -> None:
        if isinstance(value, Tensor) and (value.is_inference() or not value.is_leaf):
            copies[id(value)] = _ordinary(value)
        elif isinstance(value, dict):
            list(map(visit, value.values()))
        elif isinstance(value, (list, tuple)):
            list(map(visit, value))

    for module in model.modules():
        visit(vars(module))
    return copies


def _ordinary(value: Tensor) -> Tensor:
    plain = value.detach().clone()
    return nn.Parameter(plain, value.requires_grad) if isinstance(value, nn.Parameter) else plain


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
    z = _tried(model, x, data.name)
    expected = (len(x), data.num_classes)
    ready = copy.copy(model)
    ready.kind = kind
    ready.num_classes = model.num_classes or data.num_classes  # a plain module does not say it
    if z.shape != expected or ready.num_classes != data.num_classes:
        raise ModelError(
            f"the model has {ready.num_classes} classes and returns {tuple(z.shape)} for {len(x)} images of "
            f"{data.name}; expected {expected}, one logit for each class"
        )
    if not bool(torch.isfinite(z).all()):
        raise ModelError(f"the model returns NaN or infinite logits for images of {data.name}")
    return ready, answers_of(ready, data)


@torch.no_grad()
def _tried(model: Classifier, x: Tensor, name: str) -> Tensor:
    """Logits of some images.

    Raises:
        ModelError: with what the model raised.
    """
    try:
        z: Tensor = model(x, Draws(0, torch.arange(len(x)))) if model.randomized else model(x)
    except Exception as error:
        raise ModelError(f"the model fails on images {tuple(x.shape)} of {name}: {error}") from error
    return z


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
    pixels = _as_images(x)
    classes = model.num_classes or _tried(model, pixels[:2], "x").shape[-1]
    labels = _as_labels(y, len(pixels), classes)
    kind = replace(IMAGE, channels=pixels.shape[1])
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
    for item in data:
        if not isinstance(item, (tuple, list)) or len(item) < 2:
            raise ConfigError(f"data: {shapes}; an item is a {type(item).__name__}, not (images, labels)")
        x, y = _tensor(item[0], "images"), _tensor(item[1], "labels")
        xs.append(x[None] if x.dim() == 3 and y.dim() == 0 else x)
        ys.append(y.reshape(1) if y.dim() == 0 else y)
    if not xs:
        raise ConfigError("data: no images; a DataLoader that was used up, or an empty dataset")
    shapes_found = {tuple(x.shape[1:]) for x in xs}
    if len(shapes_found) > 1:
        raise ConfigError(f"data: images of the shapes {shortened(sorted(shapes_found))}; resize them to one")
    return torch.cat(xs), torch.cat(ys)


def _tensor(value: Any, name: str) -> Tensor:
    try:
        return torch.as_tensor(value).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise ConfigError(f"{name}: expected a tensor or an array, found {shortened(value)}") from None


def _as_images(x: Any) -> Tensor:
    found = _tensor(x, "images")
    if found.dim() != 4 or not found.is_floating_point():
        raise ConfigError(f"images: expected float [n, C, H, W] in [0, 1], found {found.dtype} {tuple(found.shape)}")
    if len(found) == 0:
        raise ConfigError("images: expected at least one, found none")
    if not bool(IMAGE.inside(found).all()):
        low, high = float(found.amin()), float(found.amax())
        hint = "divide by 255 and put the normalisation into the model"
        raise ConfigError(f"images: expected pixels in [0, 1], found {low:.4g} to {high:.4g}; {hint}")
    return found.float().clone()


def _as_labels(y: Any, n: int, classes: int) -> Tensor:
    found = _tensor(y, "labels")
    if found.shape != (n,) or found.is_floating_point() or found.dtype == torch.bool:
        raise ConfigError(f"labels: expected {n} integers, found {found.dtype} {tuple(found.shape)}")
    low, high = int(found.min()), int(found.max())
    if low < 0 or high >= classes:
        raise ConfigError(f"labels: the model has the classes 0..{classes - 1}, found {low} to {high}")
    return found.long().clone()
