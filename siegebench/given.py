"""A model passed from Python: an own copy of it, checks that it fits the data, and its description."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from siegebench.artifacts import fingerprint
from siegebench.classifier import Classifier, ModelCard, Network
from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.errors import ModelError
from siegebench.identity import answers_of, code_of

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
        mine = Network(mine, num_classes=num_classes or 0, mean=(0.0,), std=(1.0,), card=ModelCard(name=name))
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


def answers(model: Classifier, data: ImageSet) -> str:
    """A short hash of what a model does on some images, after checking that it fits the data.

    Raises:
        ModelError: when the model does not return one finite logit for each class.
    """
    x = data.pixels(slice(0, CHECKED))
    try:
        with torch.no_grad():
            z = model(x, Draws(0, data.ids[: len(x)])) if model.randomized else model(x)
    except Exception as error:
        raise ModelError(f"the model fails on images {tuple(x.shape)} of {data.name}: {error}") from error
    if model.kind != data.kind:
        raise ModelError(f"the model takes {model.kind.name}, {data.name} is {data.kind.name}")
    expected = (len(x), data.num_classes)
    model.num_classes = model.num_classes or data.num_classes  # a plain network gets it here
    if z.shape != expected or model.num_classes != data.num_classes:
        raise ModelError(
            f"the model has {model.num_classes} classes and returns {tuple(z.shape)} for {len(x)} images of "
            f"{data.name}; expected {expected}, one logit for each class"
        )
    if not bool(torch.isfinite(z).all()):
        raise ModelError(f"the model returns NaN or infinite logits for images of {data.name}")
    return answers_of(model, data)
