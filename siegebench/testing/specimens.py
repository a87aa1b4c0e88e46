"""What the contract tests use: a Case around the entry, and tiny models and images with known answers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from siegebench import ops
from siegebench.classifier import Classifier, Network
from siegebench.data import IMAGE, Granted, ImageSet, Kind, Size
from siegebench.draws import Draws
from siegebench.errors import ContractError
from siegebench.oracle import Oracle
from siegebench.testing import texts
from siegebench.threat import Norm, ThreatModel
from siegebench.types import Attack, Lesson, Probe
from siegebench.weights import weights_hash

T = TypeVar("T")
CLASSES, SIZE = 10, 16
KIND = IMAGE  # of all specimens; see `of_kind`
# some images of the victim are misclassified at this eps, some are not
EPS: dict[Norm, float] = {"linf": 2.5 / 255, "l2": 0.12, "l1": 1.5, "l0": 0.1}
# distance of every image to the half-space
NEAREST: dict[Norm, float] = {"linf": 0.05, "l2": 0.5, "l1": 0.2, "l0": 0.25}


class NotChecked(Exception):
    """The clause cannot be tested here, for a stated reason."""


@dataclass
class Case:
    """An entry under test.

    Attributes:
        sees: the data that its card declares.
        data: the kind of data that it is tested on.
        control: it is a planted control and does not have to work.
        spec: what the registry built it from; None when it has no card.
        kept: results of one clause that other clauses use.
    """

    kind: str
    entry: Any
    sees: tuple[str, ...] = ()
    control: bool = False
    data: Kind = IMAGE
    spec: dict[str, Any] | None = None
    kept: dict[Any, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.quick = self.entry.quick()

    def granted(self) -> Granted:
        """Exactly the data that the card declares."""
        data = planted_set()
        parts = {"train": data, "clean": data.select(torch.arange(40)), "val": data.select(torch.arange(40, 80))}
        sources: dict[str, Callable[[], ImageSet]] = {k: partial(parts.__getitem__, k) for k in parts}
        return Granted(type(self.entry).__name__, self.sees, **sources)


def require(ok: object, message: str) -> None:
    """Raise ContractError unless ok."""
    if not bool(ok):
        raise ContractError(message)


def one_draw(seed: int = 0) -> Draws:
    """The draws that defenses and detectors get: one stream."""
    return Draws(seed, torch.zeros(1, dtype=torch.long))


@contextmanager
def of_kind(kind: Kind) -> Iterator[None]:
    """Inside, specimens are of this kind of data."""
    global KIND
    before, KIND = KIND, kind
    try:
        yield
    finally:
        KIND = before


def _valid(x: Tensor) -> Tensor:
    """Numbers in [0, 1] as model inputs of the kind: in its box, integers where only integers are stored."""
    x = KIND.low + (KIND.high - KIND.low) * x
    return x if KIND.dtype.is_floating_point or KIND.grid is not None else KIND.load(KIND.store(x))


def images(n: int = 6, size: int = SIZE) -> Tensor:
    """Random inputs in the box of the kind, float32; the first is black, the second is white. Texts are of words."""
    if KIND.whole:
        return texts.texts(n, size)
    x = Draws(1, torch.arange(n)).uniform((KIND.channels, size, size))
    x[:1], x[1:2] = 0.0, 1.0
    return _valid(x)


def planted_set(n: int = 80, size: int = SIZE) -> ImageSet:
    """A tiny training set: each class has a colour and a brighter row, or a word."""
    labels, index = torch.arange(n) % CLASSES, torch.arange(n)
    if KIND.whole:
        return ImageSet(texts.planted(labels, size), labels, index, CLASSES, "planted", kind=KIND)
    colour = Draws(3, torch.arange(CLASSES)).uniform((KIND.channels, 1, 1))[labels]
    x = 0.4 * colour + 0.4 * Draws(2, index).uniform((KIND.channels, size, size))
    x[index, :, labels % size] += 0.2
    return ImageSet(KIND.store(_valid(x)), labels, index, CLASSES, "planted", kind=KIND)


def lesson_of(probe: Probe, model: Classifier, threat: ThreatModel, size: int) -> Lesson:
    """What the entry learns from the planted training set, or from exploring; None if it does neither."""
    if isinstance(probe, Attack) and probe.exploring():
        x = images(probe.explored(), size).to(next(model.parameters()).dtype)
        draws = Draws(0, torch.arange(1000, 1000 + len(x)))
        return probe.explore(Oracle(model, threat, draws), x, model(x).argmax(dim=1), threat, draws)
    if not probe.learning():
        return None
    data = planted_set(size=size)
    draws = Draws(0, data.ids)
    return probe.learn(Oracle(model, threat, draws), data, threat, draws)


def _net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(KIND.channels, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, CLASSES),
    )  # fmt: skip


def _wrapped(net: nn.Module, classes: int, rebuild: Callable[[], nn.Module] | None = None) -> Network:
    mean, std = (0.0,) * KIND.channels, (1.0,) * KIND.channels
    model = Network(net, num_classes=classes, mean=mean, std=std, rebuild=rebuild)
    model.kind = KIND
    return model


def network() -> Classifier:
    """An untrained convolutional network with batch norms, in eval mode; its predictions vary over the classes.

    Of texts, one with attention over words.
    """
    if KIND.whole:
        return texts.network(planted_set(), images(64))
    with torch.random.fork_rng(devices=[]):  # initialisers draw from the global generator
        model = _wrapped(_net(), CLASSES, rebuild=_net)
    model = model.fresh(0).eval()
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    with torch.no_grad():
        z = model(images(64))
        last.bias.sub_(z.mean(dim=0))
        scale = (z - z.mean(dim=0)).std()
        last.weight.div_(scale)
        last.bias.div_(scale)
    return model


def victim() -> tuple[Classifier, Tensor, Tensor]:
    """(frozen float64 network, images, the labels that it predicts for them)"""
    model = network().double().requires_grad_(False)
    x = doubled(images())
    return model, x, model(x).argmax(dim=1)


class _Halfspace(nn.Module):
    """Logits (s, -s, -20, -21) with s = w x + b: the other class is at distance |s| / |w|_dual."""

    def __init__(self, w: Tensor, b: Tensor) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(w), nn.Parameter(b)

    def forward(self, x: Tensor) -> Tensor:
        s = x.flatten(1) @ self.w + self.b
        return torch.stack([s, -s, torch.full_like(s, -20), torch.full_like(s, -21)], dim=1)


def halfspace(norm: Norm, n: int = 4, size: int = 8, scale: float = 1.0) -> tuple[Classifier, Tensor, Tensor]:
    """(linear model, images well inside the box, labels); every image is NEAREST[norm] away from the other class.

    The logits are multiplied by `scale`, which moves no boundary and saturates the softmax.
    """
    w = Draws(4, torch.zeros(1, dtype=torch.long)).normal((KIND.channels * size * size,))[0].double()
    wanted = 1.0 - 2.0 * (torch.arange(n) % 2).double()
    if norm == "l0":  # every pixel has the same effect; one pixel less than NEAREST is not enough
        d, k = len(w), NEAREST[norm] * size * size - 0.5
        w = w.sign() * (1 - KIND.channels * k / d) / (KIND.channels / 2 * k)
        x = torch.full((n, d), 0.5).double()
    else:
        dual = {"linf": w.abs().sum(), "l2": w.norm(), "l1": w.abs().max()}[norm]
        w = w / (dual * NEAREST[norm])
        x = 0.35 + 0.3 * Draws(5, torch.arange(n)).uniform((KIND.channels * size * size,)).double()
    b = -(w * 0.5).sum()
    direction = w / w.square().sum()  # shortest direction in L2; with equal weights the same step for every pixel
    x = x + (wanted - x @ w - b)[:, None] * direction
    model = _wrapped(_Halfspace(scale * w, scale * b), 4).double().eval().requires_grad_(False)
    return model, x.view(n, KIND.channels, size, size), torch.arange(n) % 2


class _Linear(nn.Module):
    """z = W (x - 0.5)."""

    def __init__(self, w: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(w)

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1) - 0.5) @ self.w.T


def four_classes(n: int = 4, size: int = 8) -> tuple[Classifier, Tensor, Tensor]:
    """(linear model of four classes, images well inside the box, the labels that it gives them), float64."""
    w = Draws(6, torch.arange(4)).normal((KIND.channels * size * size,)).double()
    model = _wrapped(_Linear(w), 4).double().eval().requires_grad_(False)
    x = 0.35 + 0.3 * Draws(7, torch.arange(n)).uniform((KIND.channels, size, size)).double()
    return model, x, model(x).argmax(dim=1)


def size_of(x: Tensor) -> Size:
    """The size for which a network of inputs x is built."""
    height, width = x.shape[2:]
    return height if height == width else (height, width)


def doubled(x: Tensor) -> Tensor:
    """Inputs in float64; integers as they are."""
    return x.to(ops.precision(x, torch.float64))


def slopes_of(x: Tensor, model: Classifier) -> Tensor:
    """What the gradients of a model are taken for: inputs, or the embeddings of texts."""
    return x if x.is_floating_point() else model.embedded(x).detach()


def input_gradient(call: Callable[[Tensor], Tensor], x: Tensor, what: str, model: Classifier) -> tuple[Tensor, Tensor]:
    """(gradient of the margin with respect to x, or to the embeddings of texts x; logits).

    Raises:
        ContractError: when it does not exist, is not finite, or is zero for an image; says so of `what`.
    """
    leaf = slopes_of(x, model).clone().requires_grad_(True)
    z = call(leaf)
    value = ops.margin(z, torch.arange(len(x))).sum()
    g = torch.autograd.grad(value, leaf, allow_unused=True)[0] if value.requires_grad else None
    if g is None:
        raise ContractError(f"no gradient passes through {what}")
    require(torch.isfinite(g).all(), f"the gradient through {what} is not finite")
    zero = int((ops.size(g, "linf") == 0).sum())
    require(zero == 0, f"the gradient through {what} is zero for {zero} of {len(x)} images")
    return g, z.detach()


def state_of(model: nn.Module) -> tuple[Any, ...]:
    """The state of a model that an entry must not change: weights, modes, flags, gradients, hooks."""
    return (
        weights_hash(model.state_dict()),
        [m.training for m in model.modules()],
        [(p.requires_grad, p.grad is None) for p in model.parameters()],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()],
        getattr(model, "randomized", None),
    )


@contextmanager
def other_global_numbers(seed: int) -> Iterator[None]:
    """Reseed the global random generators, and restore them afterwards.

    Raises:
        ContractError: when one of the generators was used.
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
    used = [name for name in before if before[name] != after[name]]
    if used:
        raise ContractError(f"used the global random generator of {used[0]}; take random numbers from draws")


def _global_state() -> dict[str, Any]:
    _, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": (np.asarray(keys).tobytes(), *rest),
        "Python": random.getstate(),
    }
