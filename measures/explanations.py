"""Explanations: attacks that change the saliency map but not the answer, or the answer but not the map."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siegebench import ops
from siegebench.cells import Flag
from siegebench.classifier import Classifier, copied
from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from siegebench.oracle import Oracle
from siegebench.threat import Norm, ThreatModel
from siegebench.types import Count, Measure, Positive

from . import _maps

POINTS = 8  # of the path of integrated gradients
ENOUGH = 3.0  # the cross-entropy from which a changed answer is not pushed further
MOST = 64  # images

Method = Literal["gradient", "gradient_x_input", "integrated"]
Goal = Literal["map", "answer", "answer_only"]


@dataclass(frozen=True, kw_only=True)
class Explanations(Measure):
    """Attacks on the saliency map h(x) of the class c that the victim predicts for the clean image.

    Vadillo, Santana, Lozano, "When and How to Fool Explainable Models (and Humans) with Adversarial Examples", arXiv
    2107.01943, order attacks by whether the answer and the explanation change. Two goals can be checked automatically:
        map      the answer stays, the map becomes that of another image:  d ||h - h_target||^2 + 10 ||p - p_0||^2
        answer   the answer changes, the map stays:                   -min(CE, 3) + 5 d ||h - h_0||^2
    with d pixels and probabilities p. `steps` sign steps of length eps / 10 (unit vectors in L2), from x. ReLU has no
    second derivative: inside the attack it is softplus, whose sharpness grows from `soft` to `sharp` (Dombrowski et
    al., "Explanations can be manipulated and geometry is to blame", NeurIPS 2019, arXiv 1906.07983). Everything is
    scored on the victim itself. Baselines: `noise`, random signs of length eps, and `answer_only`, without the map.
    Metrics for each X of map, answer, answer_only, noise:
        X_same_answer                   share of the images with the answer of the clean image
        X_own_map, X_target_map         Spearman correlation with the clean map, and with the map of the other image
        X_own_top, X_target_top         shared part of the strongest 10 % of the pixels
    and `clean_target_map`, the correlation of the maps of the two clean images. Images whose map is zero or constant
    are left out, with the flag `zero_maps`. Pictures, side by side: image, map, target map; the image of `map` and its
    map; the image of `answer` and its map.

    The first 64 images are used; the target map of an image is that of the one before it.

    Random: the baseline `noise`.

    Cost: for each of the three goals, one forward and two backward passes a step (`integrated`: 8 of each).

    Differs from the paper: it is a review and gives no algorithm; losses and steps are ours. Not measured: whether a
    person would believe the map, prototypes, and the expertise of users.

    Attributes:
        method: what h is: |gradient| of the logit of c, |gradient x input|, or |integrated gradients| from black,
            summed over the colours, with sum 1.
        steps: of each attack.
        soft, sharp: of the softplus, at the first and at the last step.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")

    method: Method = "gradient_x_input"
    steps: Count = 60
    soft: Positive = 10.0
    sharp: Positive = 100.0

    def quick(self) -> Self:
        return replace(self, steps=2)

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> dict[str, Any]:
        if threat.norm not in self.norms:
            raise NotApplicable(f"explanations handles {', '.join(self.norms)}; the norm is {threat.norm}")
        if oracle.model.randomized:
            raise NotApplicable("explanations needs one map for each image; a randomised model has many")
        oracle, x, draws = oracle[:MOST], x[:MOST], draws[:MOST]
        seen = oracle.backward_model()
        clean = seen.logits(x)
        c = clean.argmax(dim=1)
        h = self._scored(seen, x, c)
        good = _varies(h)
        if int(good.sum()) < 2:
            return {"metrics": {}, "flags": [_left_out(good)]}
        rows = good.nonzero().squeeze(1)
        seen, x, draws, c, h, p = seen[rows], x[rows], draws[rows], c[rows], h[rows], clean[rows].softmax(dim=1)
        target = h.roll(1, dims=0)

        soft = softened(oracle.model)
        moved = {
            goal: self._attack(seen, soft, goal, x, c, p, target if goal == "map" else h, threat)
            for goal in ("map", "answer", "answer_only")
        }
        signs = ops.normalise(draws.sign(tuple(x.shape[1:]), purpose="noise").to(x), threat.norm)
        moved["noise"] = ops.project(x + threat.eps * signs, x, threat.norm, threat.eps)

        metrics: dict[str, float] = {"clean_target_map": float(_maps.spearman(h, target).mean())}
        shown = [x, _maps.drawn(h, x.shape[1]), _maps.drawn(target, x.shape[1])]
        for goal, image in moved.items():
            now, label = self._scored(seen, image, c), seen.labels(image)
            whole = _varies(now)
            good[rows[~whole]] = False
            metrics[f"{goal}_same_answer"] = float((label == c).double().mean())
            for name, other in (("own", h), ("target", target)):
                if bool(whole.any()):
                    metrics[f"{goal}_{name}_map"] = float(_maps.spearman(now, other)[whole].mean())
                    metrics[f"{goal}_{name}_top"] = float(_maps.overlap(now, other)[whole].double().mean())
            if goal in ("map", "answer"):
                shown += [image, _maps.drawn(now, x.shape[1])]
        pictures = _maps.side_by_side(*shown)[: _maps.SHOWN]
        return {"metrics": metrics, "flags": [] if bool(good.all()) else [_left_out(good)], "pictures": pictures}

    def _attack(
        self,
        seen: Oracle,
        soft: Classifier,
        goal: str,
        x: Tensor,
        c: Tensor,
        p: Tensor,
        wanted: Tensor,
        threat: ThreatModel,
    ) -> Tensor:
        """Images within eps whose answer and map come near what the goal wants."""
        d, x_k = wanted[0].numel(), x
        for k in range(self.steps):
            sharpen(soft, self.soft * (self.sharp / self.soft) ** (k / max(1, self.steps - 1)))
            leaf = x_k.detach().requires_grad_(True)
            with torch.enable_grad():
                z = soft.backward_model(leaf)
                if goal == "answer_only":
                    loss = -F.cross_entropy(z, c, reduction="none").clamp(max=ENOUGH)
                else:
                    away = d * ops.flat(self._map(soft.backward_model, leaf, c, z) - wanted).square().sum(dim=1)
                    if goal == "map":
                        loss = away + 10 * (z.softmax(dim=1) - p).square().sum(dim=1)
                    else:
                        loss = 5 * away - F.cross_entropy(z, c, reduction="none").clamp(max=ENOUGH)
                (g,) = torch.autograd.grad(loss.sum(), leaf)
            self._book(seen, goal)
            x_k = ops.project(x_k - threat.eps / 10 * ops.normalise(g, threat.norm), x, threat.norm, threat.eps)
        return x_k.detach()

    def _map(self, model: Callable[[Tensor], Tensor], x: Tensor, c: Tensor, z: Tensor) -> Tensor:
        """h(x) [n, H, W], differentiable; z are the logits of x, a leaf."""
        if self.method == "integrated":
            total = torch.zeros_like(x)
            for t in _path():
                point = t * x
                (g,) = torch.autograd.grad(_maps.own(model(point), c).sum(), point, create_graph=True)
                total = total + g / POINTS
            return _maps.saliency(total * x)
        (g,) = torch.autograd.grad(_maps.own(z, c).sum(), x, create_graph=True)
        return _maps.saliency(g if self.method == "gradient" else g * x)

    def _scored(self, seen: Oracle, x: Tensor, c: Tensor) -> Tensor:
        """h(x) [n, H, W] of the victim itself."""
        logit = partial(_maps.own, c=c)
        if self.method == "integrated":
            return _maps.saliency(sum((seen.gradient(t * x, logit)[0] for t in _path()), torch.zeros_like(x)) * x)
        g = seen.gradient(x, logit)[0]
        return _maps.saliency(g if self.method == "gradient" else g * x)

    def _book(self, seen: Oracle, goal: str) -> None:
        """Count the passes of a step; the copy with softplus is asked in place of the victim."""
        maps = 0 if goal == "answer_only" else POINTS if self.method == "integrated" else 1
        one = torch.ones_like(seen.rows)
        seen.ledger.forwards.index_add_(0, seen.rows, one * (1 + maps * (self.method == "integrated")))
        seen.ledger.queries.index_add_(0, seen.rows, one * (1 + maps * (self.method == "integrated")))
        seen.ledger.backwards.index_add_(0, seen.rows, one * (1 + maps))


class SoftReLU(nn.Module):
    """log(1 + exp(beta x)) / beta: ReLU for large beta, with a second derivative."""

    beta: float = 10.0

    def forward(self, x: Tensor) -> Tensor:
        return F.softplus(x, self.beta)


def softened(model: Classifier) -> Classifier:
    """A copy with SoftReLU in place of every module ReLU; other activations stay."""
    own = copied(model)
    for module in list(own.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, SoftReLU())
    return own


def sharpen(model: nn.Module, beta: float) -> None:
    """Set beta of every SoftReLU."""
    for module in model.modules():
        if isinstance(module, SoftReLU):
            module.beta = beta


def _path() -> list[float]:
    """Midpoints of the steps from black to the image."""
    return [(i + 0.5) / POINTS for i in range(POINTS)]


def _varies(h: Tensor) -> Tensor:
    """Maps that are not constant, bool [n]."""
    return ops.flat(h).amax(dim=1) > ops.flat(h).amin(dim=1)


def _left_out(good: Tensor) -> dict[str, str]:
    told = f"the saliency map of {int((~good).sum())} of {len(good)} images is zero or constant; they are left out"
    return Flag("zero_maps", "flag", told).as_dict()
