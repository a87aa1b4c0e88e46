"""LBDN: a network whose Lipschitz constant is at most gamma for every choice of its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siegebench.classifier import Classifier, ModelCard
from siegebench.data import Granted, Kind
from siegebench.draws import Draws, derive_seed
from siegebench.errors import NotApplicable
from siegebench.threat import Norm
from siegebench.train import Recipe, renew, train
from siegebench.types import Count, Defense, Positive

from ._padded import padded
from ._sandwich import ROOT2, Orthogonal, OrthogonalLinear, SandwichConv, SandwichLinear

ROUNDING = 1e-5  # of logits in float32, as a fraction of the largest one


class LBDN(Classifier):
    """The network; logits are gamma-Lipschitz in the image, in L2.

    Args:
        size: images are padded to this side, which changes no norm.
    """

    mean: Tensor

    def __init__(
        self,
        num_classes: int,
        kind: Kind,
        size: int,
        convolutions: tuple[int, ...],
        hidden: tuple[int, ...],
        head: str,
        gamma: float,
    ) -> None:
        super().__init__()
        self.num_classes, self.kind, self.size, self.gamma, self.lln = num_classes, kind, size, gamma, head == "lln"
        self.card = ModelCard(name="lbdn")
        self._again: Callable[[], LBDN] = lambda: LBDN(num_classes, kind, size, convolutions, hidden, head, gamma)
        layers: list[nn.Module] = []
        channels, side = kind.channels, size
        for i, out in enumerate(convolutions):
            layers.append(SandwichConv(channels, out, side, 1 + i % 2))
            channels, side = out, side // (1 + i % 2)
        layers.append(nn.Flatten())
        width = channels * side**2
        for out in hidden:
            layers.append(SandwichLinear(width, out))
            width = out
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Linear(width, num_classes) if self.lln else OrthogonalLinear(width, num_classes)
        self.register_buffer("mean", torch.zeros(1, kind.channels, 1, 1))

    def features(self, x: Tensor) -> Tensor:
        h = self.gamma**0.5 * padded(x - self.mean, self.size, "lbdn")
        gained = len(self.trunk) - (1 if self.lln else 0)
        for i, layer in enumerate(self.trunk):  # the second gain comes before the last layer with a bound
            h = layer(self.gamma**0.5 * h if i == gained else h)
        return h if self.lln else self.gamma**0.5 * h

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        h = self.features(x)
        z: Tensor = F.linear(h, self.rows(), self.head.bias) if self.lln else self.head(h)
        return z

    def rows(self) -> Tensor:
        """The rows w_k of the last layer, [classes, d]; of unit length behind LLN."""
        if self.lln:
            return F.normalize(self.head.weight, dim=1)  # type: ignore[arg-type]
        rows: Tensor = self.head.deployed()[1]  # type: ignore[operator]
        return rows

    def constant(self) -> float:
        """The Lipschitz bound of what the last layer sees, with what rounding has added to the layers."""
        layers = [m for m in self.trunk.modules() if isinstance(m, Orthogonal)]
        return self.gamma * prod(1 + layer.excess() for layer in layers)

    @torch.no_grad()
    def certified_radius(self, x: Tensor, norm: Norm) -> Tensor | None:
        """R = min_j (z_c - z_j) / (L |w_c - w_j|), with the rows w of the last layer; L2 only."""
        if norm != "l2":
            return None
        z = self(x).double()
        c = z.argmax(dim=1)
        w = self.rows().double()
        apart = torch.cdist(w, w)[c].clamp(min=1e-12)
        gap = z.gather(1, c[:, None]) - z - ROUNDING * z.abs().amax(dim=1, keepdim=True)
        radius = gap / (self.constant() * apart)
        return radius.scatter(1, c[:, None], torch.inf).amin(dim=1).clamp(min=0)

    def refresh(self) -> None:
        """Deploy the trained weights."""
        for module in self.modules():
            if isinstance(module, Orthogonal):
                module.refresh()

    def fresh(self, seed: int) -> Classifier:
        with torch.random.fork_rng(devices=[]):  # initialisers draw from the global generator
            torch.manual_seed(seed)
            return self._again().to(self.mean.device)


@dataclass(frozen=True, kw_only=True)
class DirectParameterization(Defense):
    """Replace the network by one with sandwich layers, which is gamma-Lipschitz in L2 by construction, and train it.

    Wang, Manchester, "Direct Parameterization of Lipschitz-Bounded Deep Networks", ICML 2023.

        h' = sqrt2 A^T Psi relu(sqrt2 Psi^-1 B h + b),    A A^T + B B^T = I,    Psi = diag(e^psi)

    A and B come from free weights by a Cayley transform, for convolutions at each spatial frequency. So a prediction
    with margin m is stable within m / (gamma |w_c - w_j|) in L2; the certifier `lipschitz_margin` reads it. The
    loss is T CE((z - offset sqrt2 onehot(y)) / T), which asks for a margin; it saturates attacks on the cross-entropy,
    so the adaptive attack uses the margin. Images are centred by the mean alone, and padded to `size`.

    Random: the initial weights, order and augmentation.

    Cost: one linear system per layer and training step; of the size of its width, for convolutions one for each of
    size^2 / 2 frequencies. Deployed, convolutions are Fourier transforms.

    Differs from the paper: a cosine schedule instead of a piecewise linear one; convolutions alternate between stride 1
    (kernel 3) and stride 2 (kernel 2). The schedule and the sizes in the authors' code were read, their tables were
    not.

    Attributes:
        gamma: Lipschitz bound of the logits, per unit of the images in [0, 1].
        size: side of the largest images; smaller ones are padded with the mean.
        convolutions: channels of sandwich convolutions, every second one with stride 2; none by default.
        hidden: widths of the sandwich layers behind them; at least one.
        head: `lln`, a linear layer with rows of unit length, or `linear`, an orthogonal one.
        offset: the margin that the loss asks for, in units of the radius for gamma 1.
        temperature: T of the loss.
        recipe: how it is trained.
    """

    trains: ClassVar[bool] = True
    adaptive: ClassVar[tuple[dict[str, Any], ...]] = ({"name": "pgd", "loss": "margin", "steps": 50, "restarts": 5},)

    gamma: Positive = 1.0
    size: Count = 32
    convolutions: tuple[Count, ...] = ()
    hidden: tuple[Count, ...] = (128, 128)
    head: Literal["lln", "linear"] = "lln"
    offset: float = 1.5
    temperature: Positive = 0.25
    recipe: Recipe = field(default=Recipe(epochs=60, batch=128, lr=0.01, weight_decay=0.0, warmup=0.4, augment="none"))

    def wrap(self, model: Classifier) -> Classifier:
        if not self.hidden:
            raise NotApplicable("lbdn: hidden is empty; the last layer needs a sandwich layer before it")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # the structure; `fit` draws the weights
            return LBDN(
                model.num_classes, model.kind, self.size, tuple(self.convolutions), tuple(self.hidden), self.head,
                self.gamma,
            )  # fmt: skip

    def fit(self, defended: Classifier, data: Granted, draws: Draws) -> None:
        assert isinstance(defended, LBDN)
        images = data.train
        renew(defended, derive_seed(draws.seed, "lbdn"))
        defended.mean.copy_(images.pixels().mean(dim=(0, 2, 3), keepdim=True))

        def loss(z: Tensor, y: Tensor, x: Tensor, index: Tensor) -> Tensor:
            asked = self.offset * ROOT2 * F.one_hot(y, z.shape[1])
            return self.temperature * F.cross_entropy((z - asked) / self.temperature, y)

        train(defended, images, self.recipe, draws.seed, loss=loss)
        defended.refresh()
