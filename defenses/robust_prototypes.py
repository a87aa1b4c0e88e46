"""Robust prototypes: classification by components that are images, with a certified radius in closed form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import log
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from siegebench.classifier import Classifier, ModelCard
from siegebench.data import Granted, Kind
from siegebench.draws import Draws, derive_seed
from siegebench.threat import Norm
from siegebench.train import Recipe, renew, train
from siegebench.types import Count, Defense, Positive

from ._padded import padded

ROUNDING = 1e-5  # of distances in float32
TINY = 1e-30
HALVINGS = 40


class Prototypes(Classifier):
    """Logits are log p_c of the best concept of each class.

    A component w_k is an image. It is detected in x with d_k = exp(-|x - w_k|_2 / sigma_k), and

        p_c = sum_k d_k r+_kc + (1 - d_k) r-_kc,    sum_k r+_kc + r-_kc = 1

    measures how far the components that concept c requires are present, and the components that it forbids are absent.

    Args:
        rbf: no component is forbidden, r- = 0.
        bisected: how the radius is found, see `RobustPrototypes`.
    """

    def __init__(
        self, num_classes: int, kind: Kind, size: int, components: int, concepts: int, rbf: bool, bisected: bool
    ) -> None:
        super().__init__()
        self.num_classes, self.kind, self.size, self.concepts = num_classes, kind, size, concepts
        self.rbf, self.bisected, self.card = rbf, bisected, ModelCard(name="robust_prototypes")
        self._again: Callable[[], Prototypes] = lambda: Prototypes(
            num_classes, kind, size, components, concepts, rbf, bisected
        )
        self.components = nn.Parameter(0.45 + torch.rand(components, kind.channels * size**2) / 10)
        self.log_sigma = nn.Parameter(torch.zeros(components))
        self.reasoning = nn.Parameter(torch.randn(num_classes * concepts, components * (1 if rbf else 2)))

    def distances(self, x: Tensor) -> Tensor:
        """|x - w_k|_2, [n, M]."""
        flat = padded(x, self.size, "robust_prototypes").flatten(1)
        return torch.cdist(flat, self.components.to(flat), compute_mode="donot_use_mm_for_euclid_dist")

    def weights(self) -> tuple[Tensor, Tensor]:
        """log r+ and log r- of each concept, [concepts of all classes, M]; of the RBF head r- is 0."""
        r = self.reasoning.log_softmax(dim=1)
        if self.rbf:
            return r, torch.full_like(r, -torch.inf)
        present, absent = r.chunk(2, dim=1)
        return present, absent

    def log_p(self, distance: Tensor) -> Tensor:
        """log p_c of each concept, [n, concepts of all classes], in logs throughout: no sum underflows."""
        log_d = -distance / self.log_sigma.exp().to(distance)
        present, absent = (r.to(distance) for r in self.weights())
        found = log_d[:, None] + present
        if self.rbf:
            return found.logsumexp(dim=2)
        log_rest = (-torch.expm1(log_d.clamp(max=-1e-7))).log()
        return torch.logaddexp(found.logsumexp(dim=2), (log_rest[:, None] + absent).logsumexp(dim=2))

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        return self.log_p(self.distances(x)).unflatten(1, (self.num_classes, -1)).amax(dim=2)

    def features(self, x: Tensor) -> Tensor:
        return -self.distances(x)

    # --------------------------------------------------------------------------------------------------- certificates

    def closed_form(self, distance: Tensor, y: Tensor) -> Tensor:
        """eps* of class y, [n]; negative where another class is predicted.

        Within eps each d_k changes at most by the factor t = e^(eps / sigma), sigma = min sigma_k. So p_c stays above
        p_c' while C / t + b - A t >= 0: t* = (b + sqrt(b^2 + 4 A C)) / (2 A) and eps* = sigma ln t*.
        """
        sigma = self.log_sigma.to(distance).min().exp()
        if self.rbf:  # A = p_c', C = p_c, b = 0, in logs
            log_p = self.log_p(distance)
            return _over_concepts(lambda c, other: sigma / 2 * (c - other), (log_p,), y, self.concepts)
        d = (-distance / self.log_sigma.exp().to(distance)).exp()
        present, absent = (r.to(distance).exp() for r in self.weights())
        s_plus, s_minus, n = d @ present.T, d @ absent.T, absent.sum(dim=1).expand(len(d), -1)

        def radius(plus: Tensor, plus_: Tensor, minus: Tensor, minus_: Tensor, n: Tensor, n_: Tensor) -> Tensor:
            a, c, b = (minus + plus_).clamp(min=TINY), (plus + minus_).clamp(min=TINY), n - n_
            root = (b.square() + 4 * a * c).sqrt()
            # of the two forms of the solution, the one without cancellation
            t = torch.where(b > 0, (b + root) / (2 * a), 2 * c / (root - b).clamp(min=TINY))
            return sigma * t.log()

        return _over_concepts(radius, (s_plus, s_minus, n), y, self.concepts)

    def holds(self, distance: Tensor, y: Tensor, eps: Tensor) -> Tensor:
        """Whether class y is certain within eps [n], with the own sigma of each component and d_k <= 1; bool [n]."""
        log_d, reach = -distance / self.log_sigma.exp().to(distance), eps[:, None] / self.log_sigma.exp().to(distance)
        least, most = (log_d - reach).exp(), (log_d + reach).clamp(max=0).exp()
        present, absent = (r.to(distance).exp() for r in self.weights())
        low = least @ present.T + (1 - most) @ absent.T
        high = most @ present.T + (1 - least) @ absent.T
        own = low.unflatten(1, (self.num_classes, -1)).amax(dim=2).gather(1, y[:, None])[:, 0]
        others = high.unflatten(1, (self.num_classes, -1)).amax(dim=2).scatter(1, y[:, None], -torch.inf).amax(dim=1)
        return own > others

    @torch.no_grad()
    def certified_radius(self, x: Tensor, norm: Norm) -> Tensor | None:
        """L2 only, in float64, for the predicted class."""
        if norm != "l2":
            return None
        c, distance = self(x).argmax(dim=1), self.distances(x.double())
        low = self.closed_form(distance, c).clamp(min=0)
        if self.bisected:
            high = 2 * low + distance.amax(dim=1)
            for _ in range(HALVINGS):
                middle = (low + high) / 2
                yes = self.holds(distance, c, middle)
                low, high = torch.where(yes, middle, low), torch.where(yes, high, middle)
        return (low - ROUNDING * distance.amax(dim=1)).clamp(min=0)

    def fresh(self, seed: int) -> Classifier:
        with torch.random.fork_rng(devices=[]):  # initialisers draw from the global generator
            torch.manual_seed(seed)
            return self._again().to(self.components.device)


def _over_concepts(radius: Callable[..., Tensor], of: tuple[Tensor, ...], y: Tensor, concepts: int) -> Tensor:
    """The largest over the concepts of y of the smallest over all others of radius(own, other, own, other, ...), [n].

    Args:
        of: numbers of each concept, [n, classes concepts].
    """
    n, width = of[0].shape
    mine = (torch.arange(width, device=y.device) // concepts)[None] == y[:, None]
    own = mine.nonzero()[:, 1].view(n, concepts)
    arguments = [v for t in of for v in (t.gather(1, own)[:, :, None], t[:, None])]
    found = radius(*arguments)  # [n, concepts, all concepts]
    return found.masked_fill(mine[:, None], torch.inf).amin(dim=2).amax(dim=1)


@dataclass(frozen=True, kw_only=True)
class RobustPrototypes(Defense):
    """Replace the network by components in the space of images and train them, with a certified radius in closed form.

    Saralajew, Rana, Villmann, Shaker, "A Robust Prototype-Based Network with Interpretable RBF Classifier
    Foundations", AAAI 2025.

    A component is detected by its distance, which an attacker within eps changes by eps at most; see `Prototypes` for
    the network, and `Prototypes.closed_form` for the radius. The certifier `lipschitz_margin` reads it. Logits are
    log-probabilities, so attacks need a margin loss.

    Random: components, reasoning, order and augmentation.

    Differs from the paper: the radius is our derivation from the bound on each detection; the theorem was not read.
    `bisected` is tighter, and ours. Distances are Euclidean, in the space of images alone; a cosine schedule.

    Attributes:
        head: `cbc` with required and forbidden components, or `rbf` with required ones only.
        loss: `robust` is max(0, margin - eps*) with the radius eps*; `margin` is max(0, max_c' p_c' - p_c + margin).
        margin: m of the loss; a radius in L2 for `robust`, a probability for `margin`.
        components: M.
        concepts: of each class.
        sigma: where sigma_k starts; 0 is -(mean + std of the distances) / ln 0.01.
        certificate: `bisected` with a sigma for each component, or `closed` with the smallest sigma.
        size: side of the largest images; smaller ones are padded with black.
        recipe: how it is trained.
    """

    trains: ClassVar[bool] = True
    adaptive: ClassVar[tuple[dict[str, Any], ...]] = ({"name": "pgd", "loss": "margin", "steps": 50, "restarts": 5},)

    head: Literal["cbc", "rbf"] = "cbc"
    loss: Literal["robust", "margin"] = "robust"
    margin: Positive = 1.0
    components: Count = 40
    concepts: Count = 2
    sigma: float = 0.0
    certificate: Literal["bisected", "closed"] = "bisected"
    size: Count = 32
    recipe: Recipe = field(default=Recipe(epochs=40, batch=128, lr=5e-3, weight_decay=0.0, augment="none"))

    def wrap(self, model: Classifier) -> Classifier:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # the structure; `fit` draws the weights
            return Prototypes(
                model.num_classes, model.kind, self.size, self.components, self.concepts, self.head == "rbf",
                self.certificate == "bisected",
            )  # fmt: skip

    def fit(self, defended: Classifier, data: Granted, draws: Draws) -> None:
        assert isinstance(defended, Prototypes)
        net, images = defended, data.train
        renew(net, derive_seed(draws.seed, "robust_prototypes"))
        with torch.no_grad():
            parts = torch.arange(len(images)).split(256)
            seen = torch.cat([net.distances(images.pixels(i).to(net.components)) for i in parts])
            start = self.sigma or -float(seen.mean() + seen.std()) / log(0.01)
            net.log_sigma.fill_(log(start))

        def clip() -> None:
            with torch.no_grad():
                net.components.clamp_(0, 1)

        def robust(z: Tensor, y: Tensor, x: Tensor, index: Tensor) -> Tensor:
            return (self.margin - net.closed_form(net.distances(x), y)).relu().mean()

        def margin(z: Tensor, y: Tensor, x: Tensor, index: Tensor) -> Tensor:
            p = z.exp()
            own, others = p.gather(1, y[:, None])[:, 0], p.scatter(1, y[:, None], -1.0).amax(dim=1)
            return (others - own + self.margin).relu().mean()

        train(net, images, self.recipe, draws.seed, loss=robust if self.loss == "robust" else margin, gradients=clip)
        clip()
