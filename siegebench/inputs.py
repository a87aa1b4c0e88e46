"""What users bring: images, labels and models, checked once. `sb.attack`, `sb.evaluate` and suites use these checks."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from siegebench import state
from siegebench.classifier import Classifier, ModelCard, Network, Wrapped, copied, frozen
from siegebench.clipping import Unclipped, clips
from siegebench.data import IMAGE, Kind
from siegebench.draws import Draws
from siegebench.errors import ConfigError, ModelError, SiegeError, shortened

CHANNELS = (1, 3, 4)  # usual numbers of channels, to recognise images whose channels come last
PROBES = 4  # images that a model is checked with
ROUNDING = 1e-3  # pixels that are outside of the box by less are taken for rounding errors
APART = 0.05  # difference of two answers to one image, relative to the largest logit, that is not rounding


class UnreliableModel(UserWarning):
    """The model answers, but its answers are not a function of the image alone."""


@contextmanager
def gradients() -> Iterator[None]:
    """Leave the caller's `inference_mode`, `no_grad` and `autocast`: inside, an attack has no or other gradients."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in {"cpu", "cuda" if torch.cuda.is_available() else "cpu"}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


# ---------------------------------------------------------------------------------------------------- images and labels


def image_kind(channels: int) -> Kind:
    """The kind of images with this number of channels."""
    return replace(IMAGE, channels=channels)


def as_images(x: Any, kind: Kind | None = None, name: str = "images") -> Tensor:
    """A batch of inputs as a tensor without gradient.

    Args:
        x: tensor or numpy array, [n, C, H, W].
        kind: of the inputs; by default images in [0, 1] with any number of channels.
        name: of the argument, for messages.

    Raises:
        ConfigError: for anything else, with what was found and what is expected.
    """
    found = as_tensor(x, name).detach()
    found = found.clone() if found.is_inference() else found
    channels = "C" if kind is None else str(kind.channels)
    kind = kind or IMAGE
    if found.dim() != 4 or not found.is_floating_point() or not found.shape[1:].numel():
        what = f"float [n, {channels}, H, W] in {kind.box}"
        hint = "; divide by 255" if found.dtype == torch.uint8 else ""
        raise ConfigError(f"{name}: expected {what}, found {found.dtype} {tuple(found.shape)}{hint}")
    last = found.shape[-1] in CHANNELS and found.shape[1] not in CHANNELS
    if last or (channels != "C" and found.shape[1] != kind.channels):
        hint = "; the channels come last: use x.permute(0, 3, 1, 2)" if last else ""
        raise ConfigError(f"{name}: expected [n, {channels}, H, W], found {tuple(found.shape)}{hint}")
    found = found.float() if found.dtype.itemsize < 4 else found  # half precision cannot hold a small eps
    if found.numel() and not bool(kind.inside(found).all()):
        if bool(found.isnan().any()):
            images = int(found.isnan().flatten(1).any(dim=1).sum())
            raise ConfigError(f"{name}: expected pixels in {kind.box}, found NaN in {images} of {len(found)} images")
        low, high = float(found.amin()), float(found.amax())
        raise ConfigError(
            f"{name}: expected pixels in {kind.box}, found {low:.9g} to {high:.9g}{_hint(kind, low, high)}"
        )
    return found


def _hint(kind: Kind, low: float, high: float) -> str:
    """What to do about pixels from low to high, which are not all in the box."""
    if low >= kind.low - ROUNDING and high <= kind.high + ROUNDING:
        return f"; that is rounding: use x.clamp({kind.low:g}, {kind.high:g})"
    return "" if kind.grid is None else f"; divide by {kind.grid} and put the normalisation into the model"


def as_labels(y: Any, n: int, classes: int | None = None, name: str = "labels") -> Tensor:
    """Labels of n images as int64 [n].

    Args:
        y: tensor, array or list of integers.
        classes: number of classes of the model; None skips the check of the range.
        name: of the argument, for messages.

    Raises:
        ConfigError: for anything else, with what was found and what is expected.
    """
    found = as_tensor(y, name).detach()
    if found.dim() == 2 and len(found) == n and found.shape[1] > 1 and bool((found.sum(dim=1) == 1).all()):
        raise ConfigError(f"{name}: expected {n} integers, found one-hot rows {tuple(found.shape)}; use y.argmax(1)")
    found = found.long() if found.shape == (0,) else found  # an empty list has no integers to tell
    if found.shape != (n,) or found.is_floating_point() or found.dtype == torch.bool or found.is_complex():
        hint = ""
        if found.shape == (n,):
            hint = "; use y.long() if these are class numbers"
        elif found.numel() == n:
            hint = "; use y.flatten()" if n != 1 or found.dim() else "; use y.reshape(1)"
        raise ConfigError(f"{name}: expected {n} integers, found {found.dtype} {tuple(found.shape)}{hint}")
    found = found.long()
    if n and classes is not None:
        low, high = int(found.min()), int(found.max())
        if low < 0 or high >= classes:
            hint = "; subtract 1 if the classes count from 1" if low == 1 and high == classes else ""
            raise ConfigError(f"{name}: the model has the classes 0..{classes - 1}, found {low} to {high}{hint}")
    return found


def as_tensor(value: Any, name: str) -> Tensor:
    """A tensor as it is; an array or a list as a tensor.

    Raises:
        ConfigError: for anything else; `name` says what it is.
    """
    if isinstance(value, (list, tuple)) and value and all(isinstance(item, Tensor) for item in value):
        shapes = {tuple(item.shape) for item in value}
        if len(shapes) > 1:
            raise ConfigError(f"{name}: expected tensors of one shape, found {shortened(sorted(shapes))}")
        value = torch.stack([as_tensor(item, name) for item in value])
    if isinstance(value, Tensor):
        if value.is_nested or value.layout != torch.strided or value.is_quantized or value.device.type == "meta":
            what = "nested" if value.is_nested else "quantized" if value.is_quantized else str(value.layout)
            what = "meta, which has no numbers" if value.device.type == "meta" else what
            raise ConfigError(f"{name}: expected a plain dense tensor, found one that is {what}")
        return value
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{name}: expected a tensor or a numpy array, found {shortened(value)}") from None
    try:
        # a copy: torch shares the memory of an array, which may be read-only; and knows one order of bytes
        return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))
    except (TypeError, ValueError):
        what = f"numpy {array.dtype} {array.shape}" if isinstance(value, np.ndarray) else shortened(value)
        raise ConfigError(f"{name}: expected a tensor or a numpy array, found {what}") from None


# --------------------------------------------------------------------------------------------------------------- models


def as_classifier(
    model: Any, x: Tensor, *, num_classes: int | None = None, kind: Kind | None = None, card: ModelCard | None = None
) -> Classifier:
    """A Classifier of any module that maps images to logits, checked with a few images. The module does not change.

    Distributed, compiled and exported modules are unwrapped. A Classifier is returned as it is, or in a wrapper if it
    writes into the images it is given.

    Args:
        model: a Classifier, an `nn.Module`, or an exported program.
        x: images [n, C, H, W], n at least 1.
        num_classes: number of logits; by default what the model returns.
        kind: of the inputs; by default images with the channels of x.

    Raises:
        ModelError: when the model fails on these images, or does not return one finite logit for each class.
    """
    net = unwrapped(model)
    if not isinstance(net, nn.Module):
        raise ModelError(f"expected a torch.nn.Module that maps images to logits, found {shortened(model)}")
    check_weights(net)
    if any(t.is_inference() for t in (*net.parameters(), *net.buffers())):
        net = copied(net)  # tensors made in inference mode cannot take part in a gradient
    if not isinstance(net, Classifier):
        net = Network(net, num_classes=num_classes or 0, card=card or ModelCard(name=type(net).__name__))
        net.kind = kind or image_kind(x.shape[1])
    elif num_classes is not None and net.num_classes not in (0, num_classes):
        raise ModelError(f"the model has {net.num_classes} classes, num_classes is {num_classes}")
    with torch.no_grad(), frozen(net):
        return checked(net, x[:PROBES])


def check_weights(net: nn.Module) -> None:
    """Refuse a module that has no numbers yet.

    Raises:
        ModelError: for a lazy module before its first batch, or weights on the device `meta`.
    """
    for name, tensor in (*net.named_parameters(), *net.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise ModelError(
                f"the model's {name} has no shape yet (a lazy module); pass a batch through the model first"
            )
        if tensor.device.type == "meta":
            raise ModelError(f"the model's {name} is on the device meta and has no values; load the weights first")


def unwrapped(model: Any) -> Any:
    """The module inside a wrapper that only distributes or compiles it."""
    if isinstance(model, torch.export.ExportedProgram):
        return _Fixed(model.module())
    parallel = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    while isinstance(model, parallel) or hasattr(model, "_orig_mod"):
        model = model.module if isinstance(model, parallel) else model._orig_mod
    return model


class _Fixed(nn.Module):
    """A module whose mode cannot be set: the program of `torch.export` refuses train() and eval()."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program

    def forward(self, x: Tensor) -> Any:
        return self.program(x)

    def train(self, mode: bool = True) -> _Fixed:
        for module in self.modules():
            module.training = mode
        return self


@contextmanager
def blamed(model: Classifier, x: Tensor) -> Iterator[None]:
    """Errors of the user's own code inside become one line.

    Raises:
        ModelError: that the model fails on images like x. Errors about memory stay what they are.
    """
    try:
        yield
    except SiegeError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        if isinstance(error, MemoryError) or "memory" in text.lower():
            raise
        hint = ""
        if torch.is_grad_enabled():
            hint = " (a gradient was asked for; a score attack such as square needs none)"
        raise ModelError(
            f"the model fails on images {tuple(x.shape)}, {x.dtype} in {model.kind.box}: "
            f"{type(error).__name__}: {text}{hint}"
        ) from error


class _OnCopies(Wrapped):
    """Passes copies to a model that writes into the images it is given."""

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        return super().forward(x.clone(), draws)

    def backward_model(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        return super().backward_model(x.clone(), draws)


class Restored(Wrapped):
    """Puts the state back after each pass of a model that changes it in eval mode: a counter, a memory of images."""

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        with state.kept(self.inner):
            return super().forward(x, draws)

    def backward_model(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        with state.kept(self.inner):
            return super().backward_model(x, draws)


@torch.no_grad()
def restored(model: Classifier, x: Tensor) -> Classifier:
    """The model, in wrappers that mend what its passes do beside answering.

    They put its state back after each pass if a pass of a few images changes it, and let gradients through where it
    clips the images.
    """
    if isinstance(model, (Restored, Unclipped)):
        return model
    before = state.summary(model)
    with state.kept(model):
        draws = Draws(0, torch.arange(min(len(x), PROBES), device=x.device)) if model.randomized else None
        with blamed(model, x):
            model(x[:PROBES].clone(), draws)
        changed = state.changes(before, state.summary(model))
    model = Restored(model) if changed else model
    return Unclipped(model) if clips(model, x) else model


@torch.no_grad()
def check_answers(model: Classifier, x: Tensor) -> None:
    """Refuse a model that does not give images one finite logit for each class; its state is put back.

    Raises:
        ModelError: in one line, with what was found and what is expected.
    """
    draws = Draws(0, torch.arange(len(x), device=x.device)) if model.randomized else None
    with state.kept(model), blamed(model, x):
        _check_logits(model, model(x.clone(), draws), len(x))


SOME = "if the data has only some of its classes, list all of them with `classes` of the image folder"


def _check_logits(model: Classifier, z: Any, n: int) -> None:
    found = tuple(z.shape) if isinstance(z, Tensor) else f"a {type(z).__name__}"
    if found != (n, model.num_classes):
        more = isinstance(z, Tensor) and z.shape[:1] == (n,) and z.ndim == 2 and z.shape[1] > model.num_classes
        raise ModelError(
            f"the model has {model.num_classes} classes and returns {found} for {n} images; "
            f"expected {(n, model.num_classes)}, one logit for each class" + (f"; {SOME}" if more else "")
        )
    if not z.is_floating_point() or not bool(torch.isfinite(z).all()):
        what = "NaN or infinite logits" if z.is_floating_point() else f"logits of {z.dtype}"
        weights = chain(model.named_parameters(), model.named_buffers())
        broken = next((k for k, w in weights if not bool(torch.isfinite(w).all())), None)
        why = "" if broken is None else f"; its weights {broken!r} are not finite"
        raise ModelError(f"the model returns {what} for images in {model.kind.box}{why}")


def checked(model: Classifier, x: Tensor) -> Classifier:
    """The model, after checking its answers to a few images.

    In a wrapper if it writes into the images it is given, or changes its own state.

    Raises:
        ModelError: when it fails on these images, or does not return one finite logit for each class.
    """
    given, model = model, restored(model, x)
    draws = Draws(0, torch.arange(len(x), device=x.device)) if model.randomized else None

    def answers(rows: slice = slice(None)) -> tuple[Tensor, bool]:
        """(logits, whether the model wrote into the images)"""
        images = x[rows].clone()
        version = images._version
        with blamed(model, images):
            z = model(images, None if draws is None else draws[rows])
        return z, images._version != version

    z, written = answers()
    given.num_classes = model.num_classes = model.num_classes or z.shape[1]  # of a module, which does not say it
    _check_logits(model, z, len(x))
    if written:
        return checked(_OnCopies(model), x)
    if z.shape[1] > 1 and bool((z >= 0).all()) and bool(((z.sum(dim=1) - 1).abs() < 1e-4).all()):
        warnings.warn(
            f"{model.card.name}: the outputs are probabilities, not logits. A saturated softmax has no gradients, and "
            "attacks look weaker than they are: return the logits",
            UnreliableModel,
            stacklevel=4,
        )
    if not model.randomized:
        apart = APART * float(z.abs().max())
        if float((answers()[0] - z).abs().max()) > apart:
            warnings.warn(
                f"{model.card.name}: two passes of the same images differ, so the model is random (dropout in forward, "
                "noise). Results are unreliable; make it a siegebench.Classifier with randomized = True",
                UnreliableModel,
                stacklevel=4,
            )
        elif len(x) > 1 and float((answers(slice(0, 1))[0] - z[:1]).abs().max()) > apart:
            warnings.warn(
                f"{model.card.name}: the logits of an image depend on the other images of the batch (a batch norm "
                "without running statistics?). Results are unreliable",
                UnreliableModel,
                stacklevel=4,
            )
    return model
