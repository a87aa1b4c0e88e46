"""Tiny models with known answers, and images, for the contract tests: the same on every machine."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.errors import ContractError
from siegebench.threat import Norm
from siegebench.types import Classifier, Network
from siegebench.weights import weights_hash

CLASSES, SIZE = 10, 16
NEAREST: dict[Norm, float] = {"linf": 0.05, "l2": 0.5, "l1": 0.2}  # how far the half-space is from every image


def images(n: int = 6, size: int = SIZE) -> Tensor:
    """Random images in [0, 1], float32; the first is black, the second is white."""
    x = Draws(1, torch.arange(n)).uniform((3, size, size))
    x[:1], x[1:2] = 0.0, 1.0
    return x


def planted_set(n: int = 80) -> ImageSet:
    """A tiny training set: each class has a colour and a brighter row."""
    labels, places = torch.arange(n) % CLASSES, torch.arange(n)
    colour = Draws(3, torch.arange(CLASSES)).uniform((3, 1, 1))[labels]
    x = 0.4 * colour + 0.4 * Draws(2, places).uniform((3, SIZE, SIZE))
    x[places, :, labels] += 0.2
    return ImageSet((x * 255).round().to(torch.uint8), labels, places, CLASSES, "planted")


def _net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, CLASSES),
    )  # fmt: skip


def network() -> Classifier:
    """An untrained convolutional network with batch norms, in eval mode, whose answers are spread over the classes."""
    model = Network(_net(), num_classes=CLASSES, rebuild=_net).fresh(0).eval()
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    with torch.no_grad():
        z = model(images(64))
        last.bias.sub_(z.mean(dim=0))
        scale = (z - z.mean(dim=0)).std()
        last.weight.div_(scale)
        last.bias.div_(scale)
    return model


def victim() -> tuple[Classifier, Tensor, Tensor]:
    """(frozen float64 network, images, the labels that it gives them)."""
    model = network().double().requires_grad_(False)
    x = images().double()
    return model, x, model(x).argmax(dim=1)


class _Halfspace(nn.Module):
    """Logits (s, -s, -20, -21) with s = w x + b: the other class is at distance |s| / |w|_dual."""

    def __init__(self, w: Tensor, b: Tensor) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(w), nn.Parameter(b)

    def forward(self, x: Tensor) -> Tensor:
        s = x.flatten(1) @ self.w + self.b
        return torch.stack([s, -s, torch.full_like(s, -20), torch.full_like(s, -21)], dim=1)


def halfspace(norm: Norm, n: int = 4, size: int = 8) -> tuple[Classifier, Tensor, Tensor]:
    """(linear model, images well inside the box, labels); every image is NEAREST[norm] away from the other class."""
    w = Draws(4, torch.zeros(1, dtype=torch.long)).normal((3 * size * size,))[0].double()
    dual = {"linf": w.abs().sum(), "l2": w.norm(), "l1": w.abs().max()}[norm]
    w = w / (dual * NEAREST[norm])
    b = -(w * 0.5).sum()
    x = 0.35 + 0.3 * Draws(5, torch.arange(n)).uniform((3 * size * size,)).double()
    wanted = 1.0 - 2.0 * (torch.arange(n) % 2).double()
    x = x + (wanted - x @ w - b)[:, None] * w / w.square().sum()
    model = Network(_Halfspace(w, b), num_classes=4).double().eval().requires_grad_(False)
    return model, x.view(n, 3, size, size), torch.arange(n) % 2


def state_of(model: nn.Module) -> tuple[Any, ...]:
    """What nobody may change in a model that is only lent: weights, modes, flags, gradients, hooks."""
    return (
        weights_hash(model.state_dict()),
        [m.training for m in model.modules()],
        [(p.requires_grad, p.grad is None) for p in model.parameters()],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()],
        getattr(model, "randomized", None),
    )


@contextmanager
def other_global_numbers(seed: int) -> Iterator[None]:
    """Other global random numbers than before, put back afterwards.

    Raises:
        ContractError: when one of the generators was drawn from.
    """
    kept = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    try:
        before = _global_state()
        yield
        after = _global_state()
    finally:
        torch.set_rng_state(kept[0])
        np.random.set_state(kept[1])
        random.setstate(kept[2])
    moved = [name for name in before if before[name] != after[name]]
    if moved:
        raise ContractError(f"moved the global random generator of {moved[0]}; take random numbers from draws")


def _global_state() -> dict[str, Any]:
    _, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": (np.asarray(keys).tobytes(), *rest),
        "Python": random.getstate(),
    }
