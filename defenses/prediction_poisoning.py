"""Prediction poisoning: answers that give a thief a gradient which points away from the true one."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siegebench.classifier import Classifier
from siegebench.draws import Draws
from siegebench.types import Defense, Positive

from ._answers import ChangedAnswers, within

FEW = 10  # classes up to which every vertex is tried
EVALUATIONS = 1024  # of the objective for one image above that
MOST = 0.999  # of the way to a vertex, where the top-1 class is tied with others


def deviation(p: Tensor, y: Tensor, other: Tensor) -> Tensor:
    """Squared distance of the normalised gradients that answers y and `other` give a surrogate, 2 - 2 cos, [...].

    The last layer W of a surrogate with features h and posterior p has the gradient (p - y) h' for an answer y. Both
    gradients have the factor h, so the angle between them is that between p - y and p - other.

    Args:
        p, y: posteriors [n, 1, classes] or [n, classes].
        other: answers, of a shape that broadcasts with them.
    """
    return 2 - 2 * F.cosine_similarity(p - y, p - other, dim=-1, eps=1e-12)


class Poisoned(nn.Module):
    """y~ = (1 - a) y + a y*, at most eps from y in L1; y* is the vertex with the largest deviation."""

    def __init__(self, surrogate: Classifier, eps: float, form: str) -> None:
        super().__init__()
        self.surrogate, self.eps, self.form = surrogate, eps, form

    def forward(self, y: Tensor, x: Tensor, draws: Draws) -> Tensor:
        p = self.surrogate(x).softmax(dim=1)
        if self.form == "extreme":
            return within(y, vertex(p, y, torch.eye(y.shape[1], dtype=y.dtype, device=y.device)), self.eps)
        found = keeping(p, y) if y.shape[1] > FEW else vertex(p, y, _sets(y))
        return within(y, found, self.eps, MOST)


def vertex(p: Tensor, y: Tensor, among: Tensor) -> Tensor:
    """The row of `among`, [k, classes] or [n, k, classes], with the largest deviation for each image: [n, classes]."""
    every = among.expand(len(y), -1, -1)
    best = deviation(p[:, None], y[:, None], every).argmax(dim=1)
    return every[torch.arange(len(y), device=y.device), best]


def _sets(y: Tensor) -> Tensor:
    """Uniform distributions over every set of classes that has the top-1 class: [n, 2^(classes - 1), classes]."""
    classes = y.shape[1]
    others = torch.tensor(list(product((0.0, 1.0), repeat=classes - 1)), dtype=y.dtype, device=y.device)
    member = torch.cat([torch.ones_like(others[:, :1]), others], dim=1)  # the first is the top-1 class
    top = y.argmax(dim=1, keepdim=True)
    rest = torch.arange(classes - 1, device=y.device).expand(len(y), -1)
    order = torch.cat([top, rest + (rest >= top)], dim=1)  # class of each column of `member`
    sets = torch.zeros(len(y), len(member), classes, dtype=y.dtype, device=y.device)
    sets.scatter_(2, order[:, None].expand_as(sets), member.expand_as(sets))
    return sets / sets.sum(dim=2, keepdim=True)


def keeping(p: Tensor, y: Tensor) -> Tensor:
    """As `_sets` and `vertex`, but the set grows greedily by the class that raises the deviation most."""
    n, classes = y.shape
    member = F.one_hot(y.argmax(dim=1), classes).to(y.dtype)
    best = deviation(p, y, member)
    eye = torch.eye(classes, dtype=y.dtype, device=y.device)
    for _ in range(min(classes - 1, EVALUATIONS // classes)):
        larger = (member[:, None] + eye).clamp(max=1)
        value = deviation(p[:, None], y[:, None], larger / larger.sum(dim=2, keepdim=True))
        most, which = value.max(dim=1)
        grows = most > best
        if not bool(grows.any()):
            break
        member = torch.where(grows[:, None], larger[torch.arange(n, device=y.device), which], member)
        best = torch.maximum(most, best)
    return member / member.sum(dim=1, keepdim=True)


@dataclass(frozen=True, kw_only=True)
class PredictionPoisoning(Defense):
    """Maximise the angle between the gradients of a thief with the answer and with the posterior (MAD).

    Orekondy, Schiele, Fritz, "Prediction Poisoning: Towards Defenses Against DNN Model Stealing Attacks", ICLR 2020,
    arXiv 1906.10908. The thief's network is unknown; an untrained network of the victim's architecture replaces it. y*
    is the vertex that maximises |G'y*/|G'y*| - G'y/|G'y||^2, with G the gradients of the loss of each class for the
    last layer, and the answer is y~ = (1 - a) y + a y*, a = min(1, eps / |y - y*|_1). Nothing is random.

    The gradients are not computed: see `deviation`.

    Differs from the paper: with `form: argmax` and more than ten classes the search among the vertices is greedy, with
    at most 1,024 evaluations, and a is at most 0.999, so that the top-1 class stays.

    Attributes:
        eps: largest L1 distance of an answer from the posterior, at most 2.
        form: `argmax` keeps the top-1 class: vertices are uniform over sets of classes that contain it. `extreme`
            takes any class, which changes decisions; compare only `argmax` with other defenses.
        seed: of the weights of the surrogate.
    """

    differentiable: ClassVar[bool] = False
    tracks: ClassVar[tuple[str, ...]] = ("extraction",)

    eps: Positive = 0.5
    form: Literal["argmax", "extreme"] = "argmax"
    seed: int = 0

    def wrap(self, model: Classifier) -> Classifier:
        weights = next(model.parameters())
        surrogate = model.fresh(self.seed).to(weights.device, weights.dtype).eval().requires_grad_(False)
        return ChangedAnswers(model, Poisoned(surrogate, self.eps, self.form))
