"""The binarisation test: do the attacks of an evaluation find an adversarial image that is known to exist?

>>> from siegebench.testing.binarisation import binarisation
>>> binarisation(defended, x, {"pgd": attack("pgd")}).rates  # doctest: +SKIP
{'pgd': 1.0}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from sklearn.svm import SVC
from torch import Tensor, nn

from siegebench.classifier import Classifier, copied, frozen
from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from siegebench.ops import flat, over, project, size
from siegebench.oracle import Oracle
from siegebench.threat import ThreatModel
from siegebench.tracks.attacking import explored
from siegebench.tracks.judging import PASSES, fresh_passes, majority, right
from siegebench.types import Attack

NEEDED = 0.95  # fraction of the planted images that an attack must find
RANDOM = 0.5  # random search may find at most this fraction, or the test tells nothing
WITHIN = 0.95  # the inner points lie within this fraction of eps
# of the boundary, between the inner point nearest to the planted image (0) and the planted image (1); the first at
# which random search is rare is used
POSITIONS = (0.5, 0.75, 0.9, 0.95, 0.99)
HARD = 1e6  # penalty of the support vector machine that makes its margin a hard one


@dataclass(frozen=True)
class Binarisation:
    """The result of the test.

    Attributes:
        rates: fraction of the planted images that each attack found, by name.
        refused: why an attack could not be tested, by name.
        random: fraction that random search found.
        position: of the boundary, from 0 (the inner points) to 1 (the planted image).
        samples: images with a planted image.
    """

    rates: dict[str, float]
    refused: dict[str, str]
    random: float
    position: float
    samples: int

    @property
    def failed(self) -> dict[str, float]:
        """The attacks that found too few planted images."""
        return {name: rate for name, rate in self.rates.items() if rate < NEEDED}


@dataclass
class _Sample:
    """An image [1, C, H, W], and the line on which the features of all points near it are projected."""

    row: int
    image: Tensor  # the planted one, [1, C, H, W]
    direction: Tensor  # [d]
    inner: float  # largest score of an inner point
    planted: float  # score of the planted image, larger
    clean: float  # score of the image itself
    random: float  # largest score of a random point

    def threshold(self, position: float) -> float:
        return self.inner + position * (self.planted - self.inner)


def binarisation(
    model: Classifier,
    x: Tensor,
    attacks: Mapping[str, Attack],
    threat: ThreatModel | None = None,
    *,
    inner: int = 199,
    tries: int = 200,
    seed: int = 0,
) -> Binarisation:
    """Test attacks on a defended model whose last layer is replaced so that an adversarial image surely exists.

    Zimmermann, Brendel, Tramer, Carlini, "Increasing Confidence in Adversarial Robustness Evaluations", NeurIPS 2022,
    arXiv 2206.13991. For each image: `inner` points are drawn around it, within 0.95 eps, and one image is planted at
    distance eps. A new linear layer, in place of the last one of the model, tells the planted image from all the
    others. An attack from the image must then find this class: the planted image is one solution. Everything
    before and behind the last layer is as deployed, also its randomness, and so is the backward model.

    Random: the inner points and the planted image, a corner of the ball (for L2, a point of its surface). Cost: for
    each image, `inner` + `tries` forward passes (nine times as many for a randomised model), a small support vector
    machine and one run of each attack. The authors use 512 images and 999 inner points.

    Differs from the paper: the boundary moves towards the planted image only as far as needed, for all images alike,
    until random search finds at most half. The other classes are kept, with constant low logits, for attacks that need
    them. Images where no linear layer separates the planted one are left out.

    Args:
        model: the defended model, in the form that is attacked.
        x: images [n, C, H, W], one network is made for each.
        attacks: the attacks of the evaluation, by the names to use in the result.
        threat: Linf (8/255 by default) or L2.
        inner: points around each image that keep its class.
        tries: points of the random search, half of them within the ball, half like the planted image.
        seed: of all draws.

    Raises:
        NotApplicable: when the last layer cannot be replaced, no image can be used, or random search is too good.
    """
    threat = threat or ThreatModel()
    if threat.norm not in ("linf", "l2"):
        raise NotApplicable(f"the binarisation test plants images for linf and l2; the norm is {threat.norm}")
    draws = Draws(seed, torch.arange(len(x), device=x.device))
    with frozen(model):
        name, gap = _last_layer(model, x, draws)
        found = [_sample(model, name, x, i, threat, draws, inner, tries) for i in range(len(x))]
        samples = [s for s in found if s is not None]
        if 2 * len(samples) < len(x):
            raise NotApplicable(
                f"a linear layer tells the planted image from its {inner} neighbours for {len(samples)} of {len(x)} "
                "images only; take fewer inner points"
            )
        random, position = _position(samples)
        head = _with_another_layer(model, name)
    refused = {title: why for title, attack in attacks.items() if (why := _refusal(attack, threat))}
    won: dict[str, list[bool]] = {title: [] for title in attacks if title not in refused}
    sound = 0
    with frozen(head):
        for s in samples:
            _plant(head.get_submodule(name), s, position, gap)
            near, own = x[s.row : s.row + 1], draws[s.row : s.row + 1].child("attack")
            if _is_planted(head, near, own, "clean") or not _is_planted(head, s.image, own, "planted"):
                continue  # noise, or what follows the last layer, changes the class
            sound += 1
            for title, found_so_far in won.items():
                found_so_far.append(_finds(attacks[title], head, near, threat, own))
    if 2 * sound < len(x):
        raise NotApplicable(
            f"only {sound} of {len(x)} planted images get their class from the whole model: its noise is too large for "
            "this eps, or what follows the last layer changes the class"
        )
    rates = {title: sum(hits) / len(hits) for title, hits in won.items()}
    return Binarisation(rates, refused, random, position, sound)


# ------------------------------------------------------------------------------------------------------- the last layer


@dataclass
class _Seen:
    """What reaches the linear layers of a model in one pass."""

    names: list[str] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)


def _watched(model: Classifier, x: Tensor, draws: Draws) -> _Seen:
    seen = _Seen()

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, args: Any, out: Tensor) -> None:
            seen.names.append(name)
            seen.inputs.append(args[0])
            seen.outputs.append(out)

        return hook

    linear = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    handles = [m.register_forward_hook(keep(name)) for name, m in linear]
    try:
        with torch.no_grad():
            model(x, draws)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _last_layer(model: Classifier, x: Tensor, draws: Draws) -> tuple[str, float]:
    """(name of the linear layer that gives the logits, mean distance between its two largest outputs)"""
    seen = _watched(model, x, draws)
    last = [i for i, z in enumerate(seen.outputs) if z.shape == (len(x), model.num_classes)]
    if len(last) != 1:
        raise NotApplicable(
            f"the binarisation test replaces the linear layer that gives the logits; a pass of {model.card.name} runs "
            f"{len(last)} such layers"
        )
    top = seen.outputs[last[0]].topk(2, dim=1).values
    return seen.names[last[0]], float((top[:, 0] - top[:, 1]).mean())


def _with_another_layer(model: Classifier, name: str) -> Classifier:
    """A copy of the model whose last layer has no weights yet."""
    head = copied(model)
    parent, _, own = name.rpartition(".")
    old = head.get_submodule(name)
    assert isinstance(old, nn.Linear)
    with torch.random.fork_rng(devices=[]):  # the weights drawn here are never used
        new = nn.Linear(old.in_features, old.out_features).to(old.weight)
    setattr(head.get_submodule(parent), own, new)
    return head.eval()


def _features(model: Classifier, name: str, x: Tensor, draws: Draws) -> Tensor:
    """Inputs of the layer, [n, d] float64; the mean over nine passes of a randomised model."""
    passes = [draws.at(i) for i in range(PASSES)] if model.randomized else [draws]
    found = [_watched(model, x, own) for own in passes]
    return torch.stack([s.inputs[s.names.index(name)].double() for s in found]).mean(dim=0)


# ----------------------------------------------------------------------------------------------------------- planting


def _sample(
    model: Classifier, name: str, x: Tensor, row: int, threat: ThreatModel, draws: Draws, inner: int, tries: int
) -> _Sample | None:
    """Plant an image near x[row]; None if no linear layer separates it from the inner points."""
    near, own = x[row : row + 1], draws[row : row + 1]
    corners = (tries + 1) // 2
    points = torch.cat([
        near,
        _inside(near, inner, threat, WITHIN, own.child("inner")),
        _on_surface(near, 1, threat, own.child("planted")),
        _inside(near, tries - corners, threat, 1.0, own.child("random", "inside")),
        _on_surface(near, corners, threat, own.child("random", "surface")),
    ])  # fmt: skip
    phi = _features(model, name, points, own.child("features").repeat(len(points)))
    clean, others, planted, random = phi.split([1, inner, 1, tries])
    w = _separating(torch.cat([clean, others]), planted)
    scores = [(part @ w).tolist() for part in (clean, others, planted, random)]
    sample = _Sample(
        row, points[inner + 1 : inner + 2], w, max(scores[0] + scores[1]), scores[2][0], scores[0][0], max(scores[3])
    )
    return sample if sample.planted > sample.inner else None


def _inside(x: Tensor, k: int, threat: ThreatModel, fraction: float, draws: Draws) -> Tensor:
    """k points around x [1, ...] within this fraction of eps: uniform in the cube, or in the L2 ball."""
    own, eps = draws.repeat(k), fraction * threat.eps
    if threat.norm == "linf":
        delta = eps * (2 * own.uniform(tuple(x.shape[1:])) - 1)
    else:
        direction = own.normal(tuple(x.shape[1:]), purpose="direction")
        radius = own.uniform(purpose="radius") ** (1 / x[0].numel())
        delta = eps * over(radius / size(direction, "l2"), direction) * direction
    return (x + delta.to(x)).clamp(0, 1)


def _on_surface(x: Tensor, k: int, threat: ThreatModel, draws: Draws) -> Tensor:
    """k points at distance eps from x [1, ...] before they are clipped to the box: corners, or points of the sphere."""
    own = draws.repeat(k)
    if threat.norm == "linf":
        delta = threat.eps * own.sign(tuple(x.shape[1:]))
    else:
        delta = own.normal(tuple(x.shape[1:]))
        delta = delta * over(threat.eps / size(delta, "l2"), delta)
    return project(x + delta.to(x), x.expand(k, *x.shape[1:]), threat.norm, threat.eps)


def _separating(inner: Tensor, planted: Tensor) -> Tensor:
    """w [d] such that w phi is larger for the planted features [1, d] than for the inner ones [m, d], if possible."""
    phi = flat(torch.cat([inner, planted])).cpu()
    mean, scale = phi.mean(dim=0), phi.std().clamp(min=1e-12)
    labels = [0] * len(inner) + [1]
    machine = SVC(kernel="linear", C=HARD).fit(((phi - mean) / scale).numpy(), labels)
    return torch.tensor(machine.coef_[0].tolist(), dtype=torch.float64).to(inner)


def _position(samples: list[_Sample]) -> tuple[float, float]:
    """(fraction that random search finds, position of the boundary where it is small enough)"""
    for position in POSITIONS:
        random = sum(s.random > s.threshold(position) for s in samples) / len(samples)
        if random <= RANDOM:
            return random, position
    raise NotApplicable(
        f"random search finds {random:.0%} of the planted images even with the boundary close to them: they are too "
        "easy to find to test an attack"
    )


# ------------------------------------------------------------------------------------------------------------ attacking


def _plant(layer: nn.Module, s: _Sample, position: float, gap: float) -> None:
    """Set the weights of the last layer for one image: class 0 for the image, class 1 beyond the boundary.

    The two logits of the image itself are as far apart as those of the original layer, so that losses and steps of an
    attack work on the scale of the model. The other classes stay for attacks that need them. Their logits are constant
    and never the largest.
    """
    assert isinstance(layer, nn.Linear)
    threshold = s.threshold(position)
    scale = gap / max(threshold - s.clean, 1e-12)
    w, b = scale * s.direction / 2, -scale * threshold / 2
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.fill_(-gap)
        layer.weight[:2] = torch.stack([-w, w])
        layer.bias[:2] = torch.tensor([-b, b])


def _is_planted(head: Classifier, x: Tensor, draws: Draws, purpose: str) -> bool:
    """Whether the image [1, ...] gets the planted class, in most passes."""
    clean = torch.zeros(1, dtype=torch.long, device=x.device)
    return not bool(majority(right(fresh_passes(head, x, draws, purpose), clean)))


def _refusal(attack: Attack, threat: ThreatModel) -> str:
    """Why the attack cannot be tested; empty if it can."""
    if attack.learning():
        return "it learns from training images"
    if threat.norm not in attack.handles():
        return f"it handles {', '.join(attack.handles())}, not {threat.norm}"
    return attack.refusal(threat)


def _finds(attack: Attack, head: Classifier, x: Tensor, threat: ThreatModel, draws: Draws) -> bool:
    """Whether the attack, from the image x [1, ...], finds one of the planted class within eps."""
    granted, y = threat.with_access(attack.access()), torch.zeros(1, dtype=torch.long, device=x.device)
    lesson = explored(attack, head, granted, x, y, draws)[0] if attack.exploring() else None
    x_adv = attack(Oracle(head, granted, draws), x, y, granted, draws, lesson)
    inside = bool((granted.size(x_adv, x) <= granted.limit).all())
    return inside and _is_planted(head, x_adv, draws, "adversarial")
