"""NAP regions: certificates for those images of a ball that share the activation pattern of a class."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from siegebench import ops as numeric
from siegebench.bounds import Ball, Monotone, Op, intervals, values
from siegebench.classifier import Classifier, copied
from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from siegebench.layers import batches
from siegebench.oracle import Oracle
from siegebench.threat import Norm, ThreatModel
from siegebench.traced import operations
from siegebench.types import Certifier, Count, Lesson, Measure, Share

ROUNDING = 1e-5  # of the logits, by a network in float32; bounds are computed in float64


class Bounds(Protocol):
    """What is asked of the certifier: `crown` and `ibp` have it."""

    def lower(self, ops: list[Op], ball: Ball, y: Tensor, enough: Tensor) -> Tensor:
        """Lower bounds of z_y - z_k on the ball, [n, classes]; better ones than `enough` [n] are not needed."""
        ...


@dataclass(frozen=True, kw_only=True)
class NAPRegions(Measure):
    """Certificates for the images of a ball that satisfy a neural activation pattern (Geng et al., ICML 2023).

    The pattern of class c: a ReLU with pre-activation a is fixed as active if a > 0 for at least the fraction `delta`
    of the training images of c, and as inactive if a > 0 for at most 1 - delta of them, by the given labels. An image
    satisfies the pattern if a >= 0 for neurons fixed as active and a <= 0 for those fixed as inactive. For an image
    that satisfies the pattern of its label, the certificate states that every image of the ball that also satisfies
    it gets this label.

    For the bounds, a fixed neuron is replaced by the identity or by zero. On images that satisfy the pattern this
    does not change the network, so bounds of the changed network on the ball are bounds of the original network on
    these images. The better of both is used. A region is empty if a fixed neuron cannot have its state in the ball;
    such regions are counted and never certified. This certificate is weaker than one for the whole ball.

    Metrics, as fractions of the images given:
        nap_recall, nap_ambiguous      satisfy the pattern of their label; satisfy several
        nap_neurons                    fixed ReLUs, a mean over the classes
        nap_certified, nap_ball        certified within eps in the pattern, and in the ball, for images that satisfy
                                       the pattern
        nap_empty                      all images: the region of the pattern of their label is empty
        nap_eps, nap_eps_ball          largest certified radius of the images that satisfy the pattern, a mean
        nap_broken                     certified, but an image of the region with another label was found: must be 0

    Random: the training images, if there are more than `images`; the start of the attack.

    Cost: 2 (`searches` + 1) bounds of the certifier for each image that satisfies its pattern.

    Differs from the paper: linear bounds instead of Marabou, without multipliers on the pattern. The pattern is that of
    the label, and the images are those that are classified correctly.

    Attributes:
        certifier: gives the bounds.
        delta: how common a state must be, above 0.5.
        images: training images that patterns are taken from.
        searches: halvings for the largest radius, between 0 and 4 eps.
        steps: of the attack, PGD on the margin minus the violations of the pattern.

    Raises:
        NotApplicable: for networks that cannot be bounded, or without ReLUs.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("linf",)
    learns: ClassVar[bool] = True

    certifier: Certifier
    delta: Share = 0.95
    images: Count = 4000
    searches: Count = 5
    steps: Count = 20

    def learn(self, oracle: Oracle, data: ImageSet, threat: ThreatModel, draws: Draws) -> Lesson:
        if not 0.5 < self.delta <= 1:
            raise NotApplicable(f"nap_regions: delta is {self.delta:g}; set 0.5 < delta <= 1")
        chosen = draws.order("images")[: self.images]
        x, y = data.pixels(chosen), data.labels[chosen]
        net = _relus(oracle.model, x[:2].to(oracle.draws.ids.device))
        active: list[Tensor] = []
        for i in batches(x, oracle.draws.ids.device):
            active.append((net.states(x[i].to(oracle.draws.ids.device).double()) > 0).cpu())
        return patterns(torch.cat(active), y, oracle.num_classes, self.delta)

    def run(
        self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws, lesson: Lesson = None
    ) -> dict[str, Any]:
        bounds: Any = self.certifier
        if not hasattr(bounds, "lower") or threat.norm not in self.norms:
            raise NotApplicable("nap_regions needs a certifier with bounds, such as crown, and linf balls")
        assert isinstance(lesson, Tensor)
        sign, net, exact = lesson.to(x.device), _relus(oracle.model, x[:2]), x.double()
        violated = violations(net.states(exact), sign)  # [n, classes]
        own = violated.gather(1, y[:, None])[:, 0] == 0
        rows = own.nonzero()[:, 0]
        slack = ROUNDING * oracle.logits(x).abs().amax(dim=1).clamp(min=1).double()
        search = _Search(net, bounds, exact[rows], y[rows], sign[y[rows]], slack[rows])
        eps = torch.full((len(rows),), threat.eps, dtype=torch.float64, device=x.device)
        ball, region = search.ball(eps), search.region(eps)
        broken = region & self._attacked(oracle.model, net, x[rows], y[rows], sign[y[rows]], threat, draws[rows])
        empty = net.empty(exact, sign[y], threat.eps)
        n, share = len(x), (sign != 0).float().mean()
        metrics = {
            "nap_recall": int(own.sum()) / n,
            "nap_ambiguous": int(((violated == 0).sum(dim=1) > 1).sum()) / n,
            "nap_neurons": float(share),
            "nap_certified": int(region.sum()) / n,
            "nap_ball": int(ball.sum()) / n,
            "nap_empty": int(empty.sum()) / n,
            "nap_broken": int(broken.sum()) / n,
        }
        if len(rows):
            metrics["nap_eps"] = float(search.largest(search.region, 4 * threat.eps, self.searches).mean())
            metrics["nap_eps_ball"] = float(search.largest(search.ball, 4 * threat.eps, self.searches).mean())
        return {"metrics": metrics, "flags": []}

    def _attacked(
        self, model: Classifier, net: ReLUs, x: Tensor, y: Tensor, sign: Tensor, threat: ThreatModel, draws: Draws
    ) -> Tensor:
        """Where PGD meets an image of the region with another label, bool [n]."""
        found = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        if not len(x):
            return found
        start = (2 * draws.uniform(tuple(x.shape[1:]), purpose="start") - 1).to(x) * threat.eps / 2
        z = numeric.project(x + start, x, threat.norm, threat.eps)
        for _ in range(self.steps):
            z.requires_grad_(True)
            broken = (-sign * net.states(z.double())).relu().sum(dim=1)
            margin = numeric.margin(model(z), y)
            (g,) = torch.autograd.grad((margin - broken).sum(), z)
            obeys = (broken == 0).detach()
            found |= obeys & (margin.detach() > 0)
            z = z.detach() + threat.eps / 5 * numeric.normalise(g, threat.norm)
            z = numeric.project(z, x, threat.norm, threat.eps)
        return found


def patterns(active: Tensor, y: Tensor, classes: int, delta: float) -> Tensor:
    """What the pattern of each class asks of each neuron, float [classes, neurons]: 1 active, -1 inactive, 0 nothing.

    Args:
        active: of each training image, bool [n, neurons].
        y: their labels.
    """
    total = torch.bincount(y, minlength=classes)
    counts = torch.zeros(classes, active.shape[1]).index_add_(0, y, active.float())
    least, present = (delta * total).ceil()[:, None], total[:, None] > 0  # integer counts
    sign = torch.zeros_like(counts)
    sign[(counts >= least) & present] = 1
    sign[(total[:, None] - counts >= least) & present] = -1
    return sign


def violations(states: Tensor, sign: Tensor) -> Tensor:
    """How many neurons of each pattern are in the closed half-space that it forbids, [n, classes]."""
    broken = ((states > 0).to(sign) @ (sign < 0).to(sign).T) + ((states < 0).to(sign) @ (sign > 0).to(sign).T)
    return broken.long()


@dataclass(frozen=True, eq=False)
class ReLUs:
    """A network as operations, and where its ReLUs are among them (numbers of operations, from 1)."""

    ops: list[Op]
    at: list[int]
    kind: Any

    def states(self, x: Tensor) -> Tensor:
        """The pre-activations of all ReLUs, float64 [n, neurons]."""
        return torch.cat([values(self.ops[: self.ops[k - 1].inputs[0]], x).flatten(1) for k in self.at], dim=1)

    def fixed(self, x: Tensor, sign: Tensor) -> list[Op]:
        """The operations with the bound neurons of each image replaced by the identity or by zero.

        Args:
            sign: what the pattern of each image asks, [n, neurons].
        """
        out, offset = list(self.ops), 0
        for k in self.at:
            op = self.ops[k - 1]
            shape = values(self.ops[: op.inputs[0]], x[:1]).shape[1:]
            part = sign[:, offset : offset + shape.numel()].view(len(sign), *shape)
            offset += shape.numel()
            out[k - 1] = replace(op, f=_phases(part))  # type: ignore[call-arg]
        return out

    def empty(self, x: Tensor, sign: Tensor, eps: float) -> Tensor:
        """Where interval bounds leave a bound neuron no value of its side, bool [n]."""
        bounds = intervals(self.ops, Ball(x, "linf", eps, self.kind.low, self.kind.high))
        least, most = (
            torch.cat([bounds[self.ops[k - 1].inputs[0]][side].flatten(1) for k in self.at], dim=1) for side in (0, 1)
        )
        return (((sign > 0) & (most < 0)) | ((sign < 0) & (least > 0))).any(dim=1)


def _phases(sign: Tensor) -> Any:
    """The identity where sign is 1, zero where it is -1, ReLU where it is 0: monotone and convex, number by number."""

    def f(a: Tensor) -> Tensor:
        return torch.where(sign > 0, a, torch.where(sign < 0, 0.0, 1.0) * a.relu())

    return f


def _relus(model: Classifier, x: Tensor) -> ReLUs:
    """The network of a model, in float64.

    Raises:
        NotApplicable: when it cannot be bounded, or has no ReLU.
    """
    found = operations(copied(model).double(), x.double())
    probe = torch.tensor([-1.0, 2.0], dtype=torch.float64)
    at = [
        k for k, op in enumerate(found, start=1)
        if isinstance(op, Monotone) and torch.equal(op.f(probe), probe.relu())
    ]  # fmt: skip
    if not at:
        raise NotApplicable(f"nap_regions reads the states of ReLUs; {model.card.name} has none")
    return ReLUs(found, at, model.kind)


@dataclass(frozen=True, eq=False)
class _Search:
    """Certificates of images that obey their pattern, for radii eps [n]."""

    net: ReLUs
    bounds: Bounds
    x: Tensor
    y: Tensor
    sign: Tensor
    slack: Tensor

    def ball(self, eps: Tensor) -> Tensor:
        """Whether every image of the ball gets the label, bool [n]."""
        return self._holds(eps, False)

    def region(self, eps: Tensor) -> Tensor:
        """Whether every image of the ball that obeys the pattern does; at least where the whole ball is certified."""
        return self._holds(eps, False) | self._holds(eps, True)

    def _holds(self, eps: Tensor, fixed: bool) -> Tensor:
        found = torch.zeros(len(self.x), dtype=torch.bool, device=self.x.device)
        for i in range(len(self.x)):  # each image has a network and a radius of its own
            one = slice(i, i + 1)
            ops = self.net.fixed(self.x[one], self.sign[one]) if fixed else self.net.ops
            ball = Ball(self.x[one], "linf", float(eps[i]), self.net.kind.low, self.net.kind.high)
            found[i] = (self.bounds.lower(ops, ball, self.y[one], self.slack[one]) > self.slack[i]).all()
        return found

    def largest(self, holds: Any, most: float, halvings: int) -> Tensor:
        """The largest radius at which it was certified, [n]; 0 if at none."""
        low = torch.zeros(len(self.x), dtype=torch.float64, device=self.x.device)
        high = torch.full_like(low, most)
        for _ in range(halvings):
            middle = (low + high) / 2
            yes = holds(middle)
            low, high = torch.where(yes, middle, low), torch.where(yes, high, middle)
        return low
