"""Classifier: the model interface of attacks, defenses and detectors, and wrappers around a network."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from siegebench.data import IMAGE, Kind
from siegebench.draws import Draws
from siegebench.errors import ModelError, NotApplicable
from siegebench.threat import Norm

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class ModelCard:
    """The origin of a network and what is needed to rebuild it."""

    name: str
    architecture: str = ""
    source: str = ""
    weights: str = ""  # hash of the parameters, independent of the file format
    preprocessing: dict[str, Any] = field(default_factory=dict)
    dataset: str = ""
    licence: str = ""


class Classifier(nn.Module):
    """Maps pixels in [0, 1] (or another kind of input) to logits. Includes normalisation and resizing.

    `forward(x, draws)` is the real, deployed computation. A randomised classifier takes its noise from `draws`, and
    from fresh entropy when it is given none.
    """

    num_classes: int
    card: ModelCard
    randomized: bool = False
    scores_only: bool = False  # no gradients for the image, as a file of ONNX; attacks that need them are refused
    rejecting: bool = False
    kind: Kind = IMAGE

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        """Logits [n, num_classes] of images [n, 3, H, W]."""
        raise NotImplementedError

    def backward_model(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        """The same values with useful gradients for the image (BPDA); by default the forward pass itself."""
        logits: Tensor = self(x, draws)
        return logits

    def certified_radius(self, x: Tensor, norm: Norm) -> Tensor | None:
        """How far every image of the box keeps the predicted class, as the model proves by itself: [n], at least 0.

        None if it proves nothing in this norm. The certifier `lipschitz_margin` uses this radius. A wrapper around
        the model proves nothing unless it overrides this method.
        """
        return None

    def rejects(self, x: Tensor) -> Tensor:
        """Which images the model refuses to classify, bool [n]; only for models with `rejecting`. Logits exist for all.

        Raises:
            NotApplicable: when the model rejects nothing.
        """
        raise NotApplicable(f"{self.card.name} rejects no images")

    def features(self, x: Tensor) -> Tensor:
        """Input of the last linear layer, [n, d]."""
        raise NotImplementedError

    def embedded(self, x: Tensor) -> Tensor:
        """What `forward` also takes in place of integer inputs x, with gradients: the embeddings of a text.

        Raises:
            NotApplicable: for models of inputs that are no integers.
        """
        raise NotApplicable(f"{self.card.name} has no embeddings; its inputs have gradients themselves")

    def fresh(self, seed: int) -> Classifier:
        """The same architecture with new weights."""
        raise NotImplementedError


def as_logits(out: Any, n: int) -> Tensor:
    """The logits [n, classes] in what a network returned for n images.

    A tensor is taken as it is; [classes] for a single image becomes [1, classes]. Of an object with the attribute
    `logits`, or a mapping with that key, the logits are taken; of another collection, the only member that can be
    logits.

    Raises:
        ModelError: when there are none, with what was found and what is expected.
    """
    expected = f"expected logits [{n}, classes], or an object with .logits"
    found = out
    if not isinstance(out, Tensor):
        members = out if isinstance(out, Mapping) else getattr(out, "__dict__", {})
        found = getattr(out, "logits", members.get("logits"))
    if found is None:
        values: Iterable[Any] = out if isinstance(out, (tuple, list)) else members.values()
        fitting = [v for v in values if isinstance(v, Tensor) and v.is_floating_point() and _is_logits(v, n)]
        if len(fitting) != 1:
            raise ModelError(
                f"the network returns a {type(out).__name__} with {len(fitting)} tensors that could be logits; "
                f"{expected}. Wrap it in a module that returns the logits"
            )
        (found,) = fitting
    dense = isinstance(found, Tensor) and found.layout == torch.strided and found.device.type != "meta"
    if not dense or not found.is_floating_point():
        what = type(found).__name__
        if isinstance(found, Tensor):
            form = "" if dense else "meta " if found.device.type == "meta" else f"{found.layout} "
            what = f"{form}{found.dtype} {tuple(found.shape)}"
        raise ModelError(f"the network returns {what}; {expected}")
    found = found.as_subclass(Tensor)
    if found.dim() == 1 and n == 1:  # squeezed
        found = found[None]
    if (found.dim() == 2 and found.shape == (n, 1)) or found.shape == (n,):
        raise ModelError(
            f"the network returns one number for each image, {tuple(found.shape)}; expected one logit for each class. "
            "For a sigmoid classifier return two logits: z = z.flatten() / 2; torch.stack([-z, z], dim=1)"
        )
    if not _is_logits(found, n):
        raise ModelError(f"the network returns {tuple(found.shape)} for {n} images; {expected}")
    return found


def _is_logits(z: Tensor, n: int) -> bool:
    return (z.dim() == 2 and z.shape[0] == n and z.shape[1] > 1) or (z.dim() == 1 and n == 1 and len(z) > 1)


class Network(Classifier):
    """A Classifier made from an `nn.Module` on normalised images.

    Logits come back in the dtype of the images, also from a net in another precision or under autocast.

    Args:
        net: maps normalised images to logits: a tensor [n, num_classes], or an output that contains it (`as_logits`).
        num_classes: number of logits.
        mean, std: normalisation, one number for all channels or one for each.
        size: images of another size are resized to this; None disables resizing.
        rebuild: returns an untrained net of the same architecture; needed by defenses that retrain.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        net: nn.Module,
        *,
        num_classes: int,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        size: tuple[int, int] | None = None,
        card: ModelCard | None = None,
        rebuild: Callable[[], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.net, self.num_classes, self.size, self.rebuild = net, num_classes, size, rebuild
        self.card = card or ModelCard(name=type(net).__name__)
        device = next((t.device for t in (*net.parameters(), *net.buffers())), None)
        self.register_buffer("mean", torch.tensor(tuple(mean), device=device).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(tuple(std), device=device).view(1, -1, 1, 1))

    def _normalised(self, x: Tensor) -> Tensor:
        if self.size is not None and x.shape[-2:] != self.size:
            x = nn.functional.interpolate(x, self.size, mode="bilinear", antialias=True, align_corners=False)
        return (x - self.mean) / self.std

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        weight = next(self.net.parameters(), None)
        given = self._normalised(x)
        given = given if weight is None or not weight.is_floating_point() else given.to(weight.dtype)
        return as_logits(self.net(given), len(x)).to(x.dtype)

    def features(self, x: Tensor) -> Tensor:
        last = [m for m in self.net.modules() if isinstance(m, nn.Linear)]
        if not last:
            raise NotApplicable(f"{self.card.name} has no linear layer to read features from")
        seen: list[Tensor] = []
        handle = last[-1].register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
        try:
            self(x)
        finally:
            handle.remove()
        return seen[-1].flatten(1)

    def fresh(self, seed: int) -> Network:
        if self.rebuild is None:
            raise NotApplicable(
                f"{self.card.name} cannot be retrained from scratch; pass rebuild= to Network, a function that returns "
                "an untrained copy of the net"
            )
        with torch.random.fork_rng(devices=[]):  # initialisers draw from the global generator
            torch.manual_seed(seed)
            net = self.rebuild()
        untrained = copy.copy(self)
        untrained._modules, untrained._buffers = {"net": net}, dict(self._buffers)
        return untrained.to(self.mean.device)


class ScoresOnly(Network):
    """A network that answers with scores and has no gradients for the image.

    Raises:
        NotApplicable: in a pass that asks for a gradient.
    """

    scores_only = True

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            refuse_gradients(self)
        return super().forward(x, draws)


def refuse_gradients(model: Classifier) -> None:
    """Refuse gradients of a model that has none.

    Raises:
        NotApplicable: with the boards that remain.
    """
    if model.scores_only:
        raise NotApplicable(
            f"{model.card.name} gives scores and no gradients: evaluate it on query and corruption boards, with "
            "attacks of score or label access such as square"
        )


class Wrapped(Classifier):
    """A Classifier around another one; defenses override what they change."""

    def __init__(self, inner: Classifier) -> None:
        super().__init__()
        self.inner, self.num_classes, self.card = inner, inner.num_classes, inner.card
        self.randomized, self.kind, self.scores_only = inner.randomized, inner.kind, inner.scores_only

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        logits: Tensor = self.inner(x, draws)
        return logits

    def backward_model(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        return self.inner.backward_model(x, draws)

    def features(self, x: Tensor) -> Tensor:
        return self.inner.features(x)

    def embedded(self, x: Tensor) -> Tensor:
        return self.inner.embedded(x)

    def fresh(self, seed: int) -> Classifier:
        return self.inner.fresh(seed)


class Ensemble(Classifier):
    """The mean of the logits of several networks, for attackers with several surrogates."""

    def __init__(self, members: Sequence[Classifier]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.num_classes, self.card, self.kind = members[0].num_classes, members[0].card, members[0].kind
        self.randomized = any(member.randomized for member in members)
        self.scores_only = any(member.scores_only for member in members)

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        return torch.stack([member(x, draws) for member in self.members]).mean(dim=0)


# ----------------------------------------------------------------------------------------------- copies and frozen mode


def copied(model: M) -> M:
    """A deep copy, also of a module that keeps results of a forward pass, or that was made in inference mode."""
    memo: dict[int, Any] = {}

    def visit(value: Any) -> None:
        if isinstance(value, Tensor) and (value.is_inference() or not value.is_leaf):  # deepcopy cannot copy these
            plain = value.detach().clone()
            memo[id(value)] = nn.Parameter(plain, False) if isinstance(value, nn.Parameter) else plain
        elif isinstance(value, (dict, list, tuple)):
            for inner in value.values() if isinstance(value, dict) else value:
                visit(inner)

    for module in model.modules():
        visit(vars(module))
    with torch.no_grad():  # copies of TorchScript would keep their history
        return copy.deepcopy(model, memo)


_HELD: dict[int, list[Any]] = {}  # modules and parameters that are frozen now: [it, how often, what it was]
_LOCK = threading.Lock()


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Eval mode and weights without gradient; every module and parameter is restored afterwards.

    Several threads may freeze the same modules: the last one restores them.
    """
    things: list[Any] = [*model.modules(), *model.parameters()]

    def flag(thing: Any) -> str:
        return "requires_grad" if isinstance(thing, Tensor) else "training"

    with _LOCK:
        for thing in things:  # TorchScript that was frozen has no `training`
            _HELD.setdefault(id(thing), [thing, 0, getattr(thing, flag(thing), None)])[1] += 1
    try:
        with _LOCK:
            model.eval()
            for parameter in model.parameters():  # requires_grad_() of the module is not supported by TorchScript
                parameter.requires_grad_(False)
        yield
    finally:
        with _LOCK:
            for thing in things:
                held = _HELD[id(thing)]
                held[1] -= 1
                if held[1] == 0:
                    del _HELD[id(thing)]
                    if held[2] is not None:
                        setattr(thing, flag(thing), held[2])
