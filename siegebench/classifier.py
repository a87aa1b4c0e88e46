"""Classifier: the model interface of attacks, defenses and detectors, and wrappers around a network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from siegebench.data import IMAGE, Kind
from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from siegebench.threat import Norm


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
    certifies: Norm | None = None
    kind: Kind = IMAGE

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        """Logits [n, num_classes] of images [n, 3, H, W]."""
        raise NotImplementedError

    def backward_model(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        """The same values with useful gradients for the image (BPDA); by default the forward pass itself."""
        logits: Tensor = self(x, draws)
        return logits

    def radius(self, x: Tensor) -> Tensor:
        """Certified radius of the prediction for each image, [n]; -inf where the model abstains.

        Only for models that certify; `certifies` is the norm.

        Raises:
            NotApplicable: when the model certifies nothing.
        """
        raise NotApplicable(f"{self.card.name} certifies no radius")

    def features(self, x: Tensor) -> Tensor:
        """Input of the last linear layer, [n, d]."""
        raise NotImplementedError

    def fresh(self, seed: int) -> Classifier:
        """The same architecture with new weights."""
        raise NotImplementedError


class Network(Classifier):
    """A Classifier made from an `nn.Module` on normalised images.

    Args:
        net: maps normalised images to logits.
        num_classes: number of logits.
        mean, std: per-channel normalisation.
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
        mean: tuple[float, ...] = (0.0, 0.0, 0.0),
        std: tuple[float, ...] = (1.0, 1.0, 1.0),
        size: tuple[int, int] | None = None,
        card: ModelCard | None = None,
        rebuild: Callable[[], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.net, self.num_classes, self.size, self.rebuild = net, num_classes, size, rebuild
        self.card = card or ModelCard(name=type(net).__name__)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def _normalised(self, x: Tensor) -> Tensor:
        if self.size is not None and x.shape[-2:] != self.size:
            x = nn.functional.interpolate(x, self.size, mode="bilinear", antialias=True, align_corners=False)
        return (x - self.mean) / self.std

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        logits: Tensor = self.net(self._normalised(x))
        return logits

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


class Wrapped(Classifier):
    """A Classifier around another one; defenses override what they change."""

    def __init__(self, inner: Classifier) -> None:
        super().__init__()
        self.inner, self.num_classes, self.card = inner, inner.num_classes, inner.card
        self.randomized, self.kind = inner.randomized, inner.kind

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        logits: Tensor = self.inner(x, draws)
        return logits

    def backward_model(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        return self.inner.backward_model(x, draws)

    def features(self, x: Tensor) -> Tensor:
        return self.inner.features(x)

    def fresh(self, seed: int) -> Classifier:
        return self.inner.fresh(seed)


class Ensemble(Classifier):
    """The mean of the logits of several networks, for attackers with several surrogates."""

    def __init__(self, members: Sequence[Classifier]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.num_classes, self.card, self.kind = members[0].num_classes, members[0].card, members[0].kind
        self.randomized = any(member.randomized for member in members)

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        return torch.stack([member(x, draws) for member in self.members]).mean(dim=0)
