"""Shared by repairs of backdoored networks: finding layers in a forward pass, and checks on held-out images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from siegebench.classifier import Classifier
from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from siegebench.train import Recipe

TUNING = Recipe(epochs=100, batch=64, optimiser="sgd", lr=0.03)  # that of fine_tuning


def sample(model: Classifier, data: ImageSet, n: int = 2) -> Tensor:
    """The first images of a set, as the model takes them."""
    like = next(model.parameters())
    return data.pixels(slice(0, n), like.dtype).to(like.device)


@contextmanager
def watching(model: nn.Module, hook: Callable[[str, nn.Module, Tensor, Any], None]) -> Iterator[None]:
    """Call hook(name, module, input, output) after each module whose first input is a tensor."""

    def watch(name: str) -> Callable[..., None]:
        def call(module: nn.Module, args: Any, out: Any) -> None:
            if args and isinstance(args[0], Tensor):
                hook(name, module, args[0], out)

        return call

    handles = [m.register_forward_hook(watch(name)) for name, m in model.named_modules() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def passed(model: Classifier, x: Tensor) -> Tensor:
    """Logits of images in eval mode; a randomised network takes fixed noise."""
    model.eval()
    draws = Draws(0, torch.arange(len(x), device=x.device)) if model.randomized else None
    z: Tensor = model(x, draws)
    return z


def norms(model: Classifier) -> dict[str, _BatchNorm]:
    """The batch norms with a scale and a bias, by name.

    Raises:
        NotApplicable: when there are none.
    """
    found = {n: m for n, m in model.named_modules() if isinstance(m, _BatchNorm) and m.affine}
    if not found:
        raise NotApplicable(f"{model.card.name} has no batch norms with a scale; use a network that has some")
    return found


def conv_norm_pairs(model: Classifier, x: Tensor) -> list[tuple[nn.Conv2d, _BatchNorm]]:
    """(convolution, batch norm) wherever the output of one is the input of the other, in the order of a forward pass.

    Layers are paired by the tensor that passes between them, not by their order in the module list: in a
    pre-activation block the batch norm that follows a convolution there normalises something else.

    Raises:
        NotApplicable: when there is no such pair.
    """
    outputs: list[tuple[Tensor, nn.Conv2d]] = []
    pairs: list[tuple[nn.Conv2d, _BatchNorm]] = []

    def hook(name: str, module: nn.Module, given: Tensor, out: Any) -> None:
        if isinstance(module, nn.Conv2d) and isinstance(out, Tensor):
            outputs.append((out, module))
        elif isinstance(module, _BatchNorm) and module.affine:
            pairs.extend((conv, module) for tensor, conv in outputs if tensor is given)

    with watching(model, hook):
        passed(model, x)
    if not pairs:
        raise NotApplicable(
            f"{model.card.name} has no convolution whose output goes into a batch norm with a scale; use a network "
            "that has some"
        )
    return pairs


def head(model: Classifier, x: Tensor) -> tuple[nn.Linear, int]:
    """(the first linear layer after the last feature maps, the number C of their channels).

    Its inputs are the pooled or flattened maps, so input j belongs to the channel j // (inputs / C).

    Raises:
        NotApplicable: when no linear layer follows feature maps.
    """
    found: tuple[nn.Linear, int] | None = None
    channels = 0

    def hook(name: str, module: nn.Module, given: Tensor, out: Any) -> None:
        nonlocal found, channels
        if isinstance(module, nn.Linear) and given.dim() == 2:
            if found is None and channels and module.in_features % channels == 0:
                found = module, channels
        elif isinstance(out, Tensor) and out.dim() == 4:
            found, channels = None, out.shape[1]

    with watching(model, hook):
        passed(model, x)
    if found is None:
        raise NotApplicable(
            f"{model.card.name} has no linear layer that takes the channels of a convolution; use a network that ends "
            "with feature maps and a linear layer"
        )
    return found
