"""Convex adversarial training: a two-layer ReLU network whose worst case in the ball is a convex programme."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench.classifier import Classifier, ModelCard
from siegebench.data import Granted, Kind
from siegebench.draws import Draws
from siegebench.errors import MissingExtra, ModelError
from siegebench.types import Count, Defense, Positive, Share


class TwoLayers(Classifier):
    """f_c(x) = sum_i relu(x^ u_ci) a_ci, with x^ the grey image, averaged to side x side pixels, and a constant.

    With two classes there is one f, and the logits are -f / 2 and f / 2. Otherwise f_c separates class c from the
    others. Averages of pixels change by at most eps in Linf, as the pixels do.

    Attributes:
        bound: the data term of the programme of each f, at its solution: a bound of the mean hinge loss on the images
            that it was solved for, under every perturbation within eps, [functions].
    """

    u: Tensor
    a: Tensor
    bound: Tensor

    def __init__(self, num_classes: int, kind: Kind, side: int, neurons: int) -> None:
        super().__init__()
        self.num_classes, self.kind, self.side = num_classes, kind, side
        self.card = ModelCard(name="convex_at")
        functions = 1 if num_classes == 2 else num_classes
        self.register_buffer("u", torch.zeros(functions, neurons, side**2 + 1))
        self.register_buffer("a", torch.zeros(functions, neurons))
        self.register_buffer("bound", torch.zeros(functions))

    def seen(self, x: Tensor) -> Tensor:
        """x^ [n, side^2 + 1], its last number is 1."""
        grey = F.adaptive_avg_pool2d(x.mean(dim=1, keepdim=True), self.side).flatten(1)
        return torch.cat([grey, torch.ones_like(grey[:, :1])], dim=1)

    def features(self, x: Tensor) -> Tensor:
        return torch.einsum("nd,cid->nci", self.seen(x), self.u).relu().flatten(1)

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        f = (self.features(x).unflatten(1, self.a.shape) * self.a).sum(dim=2)
        return torch.cat([-f / 2, f / 2], dim=1) if self.num_classes == 2 else f


@dataclass(frozen=True, kw_only=True)
class ConvexAdversarialTraining(Defense):
    """Solve the adversarial training of a two-layer ReLU network as a convex programme, in place of the network.

    Bai, Gautam, Gai, Sojoudi, arXiv 2105.12237; Bai, Gautam, Sojoudi, arXiv 2201.01965.

    D_i = diag(1[X g_i >= 0]) are the activation patterns of random neurons g_i on the images X [n, d]. Then

        min  1/n sum_k max(0, 1 - y_k f(x_k) + eps |sum_i d_ik (v_i - w_i)|_1) + beta sum_i |v_i|_2 + |w_i|_2
        s.t. (2 D_i - I) X v_i >= eps |v_i|_1,  the same for w_i,      f(x_k) = sum_i d_ik x_k (v_i - w_i)

    is convex, and the neurons v_i / sqrt|v_i| with weight sqrt|v_i|, and -sqrt|w_i| for w, are a network with this f.
    The constraints keep every pattern the same in the ball of each image, so the hinge loss is exact for these
    patterns: no perturbation within eps gives a larger mean hinge loss on these images than the value of the programme.

    Random: the images, if there are more than `images`, and the neurons g_i.

    Cost: one programme for two classes, else one per class; its size is `images` x patterns x side^2. Minutes for 100
    images, 30 patterns and 8x8 pixels.

    Differs from the paper: the robust loss is our derivation, exact for the fixed patterns. For a robust programme
    half of the patterns are those of images moved at random within eps. The pattern that is active everywhere is always
    there: at a large eps no other may keep its signs in all balls. Images are averaged to few pixels; more than two
    classes are handled one against the rest.

    Attributes:
        eps: of the Linf ball; 0 is the programme without an attacker.
        hyperplanes: random neurons whose patterns are used.
        patterns: at most so many of them, if they differ.
        beta: weight decay.
        side: the network sees side x side pixels.
        images: training images that the programme is solved for.

    Raises:
        MissingExtra: without cvxpy and clarabel.
        ModelError: when the programme is not solved.
    """

    trains: ClassVar[bool] = True
    adaptive: ClassVar[tuple[dict[str, Any], ...]] = ({"name": "pgd", "loss": "margin", "steps": 50, "restarts": 5},)

    eps: Share = 0.1
    hyperplanes: Count = 12
    patterns: Count = 32
    beta: Positive = 1e-4
    side: Count = 8
    images: Count = 100

    def quick(self) -> ConvexAdversarialTraining:
        return replace(self, eps=min(self.eps, 0.01), hyperplanes=4, patterns=8, side=4, images=30)

    def wrap(self, model: Classifier) -> Classifier:
        return TwoLayers(model.num_classes, model.kind, self.side, 2 * self.patterns)

    def fit(self, defended: Classifier, data: Granted, draws: Draws) -> None:
        assert isinstance(defended, TwoLayers)
        if find_spec("cvxpy") is None or find_spec("clarabel") is None:
            raise MissingExtra("cvxpy with clarabel", "convex", "convex_at")
        images = data.train
        stream = Draws(draws.seed, images.ids)
        chosen = stream.order("images")[: self.images]
        x = defended.seen(images.pixels(chosen).to(defended.u)).double().cpu()
        on = self.activations(x, Draws(draws.seed, torch.arange(self.hyperplanes)))
        labels = images.labels[chosen]
        for c in range(len(defended.a)):
            own = labels == (1 if defended.num_classes == 2 else c)
            v, w, bound = solve(x, torch.where(own, 1.0, -1.0).double(), on, self.eps, self.beta)
            for k, (vectors, sign) in enumerate(((v, 1.0), (w, -1.0))):
                root = vectors.norm(dim=1).sqrt()
                at = slice(k * self.patterns, k * self.patterns + len(vectors))
                defended.u[c, at] = (vectors / root.clamp(min=1e-12)[:, None]).to(defended.u)
                defended.a[c, at] = (sign * root).to(defended.a)
            defended.bound[c] = bound

    def activations(self, x: Tensor, draws: Draws) -> Tensor:
        """The patterns of random neurons that differ, 0 or 1, [patterns, n]; half are of moved images if eps > 0.

        The first one is always that of a neuron which is active on all images.
        """
        n, d = x.shape
        g = draws.normal((d,), purpose="neurons").double()
        noise = 2 * draws.uniform((n, d), purpose="moved").double() - 1
        noise[:, :, -1] = 0
        moved = torch.einsum("pnd,pd->pn", x + self.eps * noise, g) >= 0
        on = torch.cat([g @ x.T >= 0, moved] if self.eps else [g @ x.T >= 0]).double().unique(dim=0)
        linear = torch.ones(1, n, dtype=on.dtype)
        return torch.cat([linear, on[~on.bool().all(dim=1)]])[: self.patterns]


def solve(x: Tensor, y: Tensor, on: Tensor, eps: float, beta: float) -> tuple[Tensor, Tensor, float]:
    """(v [P, d], w [P, d], data term) at the solution.

    Args:
        x: [n, d], float64; the last column is the constant, which no attacker moves.
        y: +1 or -1, [n].
        on: the patterns, [P, n].

    Raises:
        ModelError: when the solver finds none.
    """
    cp: Any = import_module("cvxpy")  # its names are made at run time

    n, d = x.shape
    data, v, w = x.numpy(), cp.Variable((len(on), d)), cp.Variable((len(on), d))
    difference = v - w
    slopes = on.T.numpy() @ difference  # of f in each ball, [n, d]
    f = cp.sum(cp.multiply(slopes, data), axis=1)
    shift = eps * cp.sum(cp.abs(slopes[:, :-1]), axis=1) if eps else 0
    hinge = cp.sum(cp.pos(1 - cp.multiply(y.numpy(), f) + shift)) / n
    decay = cp.sum(cp.norm(v, 2, axis=1)) + cp.sum(cp.norm(w, 2, axis=1))
    sides = 2 * on.numpy() - 1
    limits = [cp.multiply(sides[i], data @ t[i]) >= eps * cp.norm1(t[i, :-1]) for t in (v, w) for i in range(len(on))]
    problem = cp.Problem(cp.Minimize(hinge + beta * decay), limits)
    problem.solve(solver=cp.CLARABEL)
    if problem.status not in ("optimal", "optimal_inaccurate"):
        raise ModelError(f"convex_at: the programme is {problem.status}; lower eps ({eps:g}) or raise beta ({beta:g})")
    return torch.from_numpy(v.value), torch.from_numpy(w.value), float(hinge.value)
