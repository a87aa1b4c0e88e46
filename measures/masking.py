"""Masking: does this victim only look robust? Signs of masked gradients that one model shows by itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench import ops
from siegebench.cells import Flag
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.threat import ThreatModel
from siegebench.types import Count, Measure

ZERO = 1e-12  # a gradient with no larger entry is no gradient
SAME = 1e-4  # distance of two normalised outputs that are still called the same
PROBABILITY = 1e-5  # rounding of a softmax
SWEEP = (0.5, 1.0, 2.0, 4.0)  # times the eps of the threat; the whole box comes last


@dataclass
class _Report:
    metrics: dict[str, float] = field(default_factory=dict)
    flags: list[dict[str, str]] = field(default_factory=list)

    def flag(self, name: str, severity: Literal["info", "flag", "fail"], evidence: str) -> None:
        self.flags.append(Flag(name, severity, evidence).as_dict())

    def as_dict(self) -> dict[str, Any]:
        return {"metrics": self.metrics, "flags": self.flags}


@dataclass(frozen=True, kw_only=True)
class Masking(Measure):
    """Look for the signs of masked gradients that Carlini et al. and Athalye et al. describe.

    Carlini et al., "On Evaluating Adversarial Robustness", 2019; Athalye, Carlini, Wagner, "Obfuscated Gradients Give a
    False Sense of Security", ICML 2018; limits of the checks on outputs after AutoAttack (Croce & Hein, ICML 2020).

    On correctly classified images:
        looks at the same image agree, unless the model declares itself randomised
        outputs are logits, finite, with finite gradients
        the gradient is not zero: not through the deployed model, not under cross-entropy alone
        PGD on the margin, from the image itself and through the surrogate, breaks more images as eps grows, all but
        chance in the whole box, its loss rises, and twice the steps gain nothing more

    The checks that set several attacks against each other are made on finished rows. Nothing is random but the model;
    a randomised one is asked for means over `averaged` looks. Broken images leave all runs but the two at the threat's
    eps.

    Differs from the sources: rates are judged on few images, so a difference must exceed one image and two binomial
    standard errors; the median share of improving steps counts the steps until the radius of the ball is travelled,
    because at its boundary the sign of the gradient zigzags; more steps must gain on images that are still unbroken.

    Attributes:
        samples: images, the first of the batch.
        steps: of PGD, each 2.5 eps / steps long.
        looks: passes that are compared to find randomness.
        averaged: looks behind each answer of a randomised model.
    """

    samples: Count = 32
    steps: Count = 20
    looks: Count = 5
    averaged: Count = 4

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> dict[str, Any]:
        report = _Report()
        first = slice(self.samples)
        oracle, x, y = oracle[first], x[first], y[first]
        if not len(x):
            return report.as_dict()
        usable = self._outputs(oracle, x, report) and self._gradients(oracle, x, y, report)
        if usable:  # nothing can be said of an attack that meets NaN
            self._sweep(oracle.as_attacked(self.averaged), x, y, threat, report)
        return report.as_dict()

    def _outputs(self, oracle: Oracle, x: Tensor, report: _Report) -> bool:
        """Finite, repeatable, logits."""
        n = len(x)
        z = torch.stack([oracle.logits(x) for _ in range(self.looks)], dim=1)  # [n, looks, classes]
        bad = int((~torch.isfinite(z)).flatten(1).any(dim=1).sum())
        if bad:
            report.flag("nan", "fail", f"{bad} of {n} images have outputs that are not finite")
            return False
        unit = F.normalize(z.double(), dim=2)
        spread = float(torch.cdist(unit, unit, compute_mode="donot_use_mm_for_euclid_dist").amax())
        changed = int((z.argmax(dim=2) != z.argmax(dim=2)[:, :1]).any(dim=1).sum())
        report.metrics["look_spread"] = spread
        if (changed or spread > SAME) and not oracle.model.randomized:
            report.flag(
                "randomness_undeclared",
                "fail",
                f"{self.looks} looks at one image give outputs up to {spread:.2g} apart, {changed} of {n} images "
                "change their class, and the model does not declare itself randomised",
            )
        positive = z.amin() > -PROBABILITY and z.amax() < 1 + PROBABILITY
        if positive and bool(((z.sum(dim=2) - 1).abs() < PROBABILITY).all()):
            report.flag("not_logits", "flag", f"the outputs of all {n} images are probabilities, not logits")
        return True

    def _gradients(self, oracle: Oracle, x: Tensor, y: Tensor, report: _Report) -> bool:
        """Finite; not zero under the margin; not zero under the cross-entropy alone."""
        n = len(x)
        ce, margin = partial(ops.cross_entropy, y=y), partial(ops.margin, y=y)
        asked = {
            "ce": oracle.gradient(x, ce)[0],
            "margin": oracle.gradient(x, margin)[0],
            "surrogate": oracle.surrogate().gradient(x, margin)[0],
        }
        share = {}
        for name, g in asked.items():
            share[name] = float((ops.size(g.nan_to_num(1.0), "linf") < ZERO).double().mean())
            report.metrics[f"zero_gradient_{name}"] = share[name]
        bad = int((~torch.isfinite(torch.stack(list(asked.values()), dim=1))).flatten(1).any(dim=1).sum())
        if bad:
            report.flag("nan", "fail", f"{bad} of {n} images have gradients that are not finite")
        if share["margin"] > 0.01:
            blind = share["margin"] > 0.20 and share["surrogate"] > 0.20
            report.flag(
                "zero_gradients",
                "fail" if blind else "flag",
                f"the gradient of the margin is zero for {_percent(share['margin'])} of {n} images through the "
                f"deployed model, for {_percent(share['surrogate'])} through its surrogate",
            )
        if share["ce"] - share["margin"] > 0.05:
            report.flag(
                "saturated_softmax",
                "flag",
                f"the gradient is zero for {_percent(share['ce'])} of {n} images under cross-entropy and for "
                f"{_percent(share['margin'])} under the margin: large logits saturate the softmax",
            )
        return not bad

    def _sweep(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, report: _Report) -> None:
        """Accuracy against eps up to the whole box; the course of the loss at the eps of the threat."""
        n, d = len(x), x[0].numel()
        whole = {"linf": 1.0, "l2": d**0.5, "l1": float(d)}[threat.norm]
        climb = partial(self._climb, oracle, x, y, threat.norm)
        curve = {0.0: int((oracle.labels(x) == y).sum())}
        for eps in sorted({whole, *(min(k * threat.eps, whole) for k in SWEEP)} - {0.0}):
            if eps == threat.eps:
                held, loss = climb(eps, self.steps, leave=False)
                twice = climb(eps, 2 * self.steps, leave=False)
                self._course(held, loss, *twice, report)
            else:
                held, _ = climb(eps, self.steps, leave=True)
            curve[eps] = int(held.sum())
        points = list(curve.items())
        report.metrics.update({f"sweep@{eps:.6g}": count / n for eps, count in points})
        chance = 1 / oracle.num_classes
        last = points[-1][1] / n
        if last > chance + _tolerance(chance, n):
            report.flag(
                "eps_sweep_not_zero",
                "fail",
                f"{_percent(last)} of {n} images are still right at {threat.norm} {whole:.4g}, where any image is "
                f"allowed; guessing gets {_percent(chance)}",
            )
        for (small, before), (large, after) in pairwise(points):
            if (after - before) / n > _tolerance(before / n, n):
                report.flag(
                    "not_monotone",
                    "fail",
                    f"{after} of {n} images are right at {threat.norm} {large:.4g}, only {before} at {small:.4g}",
                )
                break

    def _course(self, held: Tensor, loss: Tensor, held2: Tensor, loss2: Tensor, report: _Report) -> None:
        """What the loss [steps + 1, n] does along a run, and in a second one of twice the steps."""
        n = len(held)
        risen = float((loss[-1] > loss[0]).double().mean())
        straight = max(1, round(0.4 * self.steps))  # steps until 2.5 eps / steps each make eps
        rises = (loss[1:] > loss[:-1])[:straight].double().mean(dim=0)
        improving = float(rises.median())
        report.metrics["loss_risen"], report.metrics["improving_steps"] = risen, improving
        if risen < 0.95 or improving < 0.5:
            report.flag(
                "loss_not_increasing",
                "flag",
                f"the margin loss ends above its start for {_percent(risen)} of {n} images; the median image improves "
                f"in {_percent(improving)} of the first {straight} steps",
            )
        fewer = int(held.sum()) - int(held2.sum())
        open_ = held.nonzero().squeeze(1)
        once, twice = (float((run.amax(dim=0) - run[0])[open_].sum()) for run in (loss, loss2))
        growing = len(open_) > 1 and twice > 1.05 * once
        gain = twice / once - 1 if once > 0 else float(twice > 0)
        report.metrics["gain_of_twice_the_steps"] = gain if len(open_) else 0.0
        if fewer > max(1.0, 0.005 * n) or growing:
            report.flag(
                "loss_still_rising",
                "flag",
                f"{2 * self.steps} steps instead of {self.steps} break {fewer} more of {n} images; on the {len(open_)} "
                f"unbroken ones the loss climbs {_percent(gain)} further",
            )

    def _climb(
        self, oracle: Oracle, x: Tensor, y: Tensor, norm: str, eps: float, steps: int, leave: bool
    ) -> tuple[Tensor, Tensor]:
        """PGD on the margin from x: which images stay right, and the losses [steps + 1, n] when none may leave.

        An image is broken by any iterate; under noise, where one of many is wrong by luck, by the last one.
        """
        held, course, lucky = torch.ones_like(y, dtype=torch.bool), [], oracle.model.randomized
        live, x_t = torch.arange(len(x), device=x.device), x
        for t in range(steps + 1):
            g, z, value = oracle[live].gradient(x_t, partial(ops.margin, y=y[live]))
            course.append(value)
            right = z.argmax(dim=1) == y[live]
            held[live] = right if lucky else right & held[live]
            rest = held[live].nonzero().squeeze(1) if leave and not lucky else slice(None)
            live, x_t, g = live[rest], x_t[rest], g[rest]
            if t == steps or not len(live):
                break
            step = (2.5 * eps / steps) * _direction(g.nan_to_num(0.0), norm)
            x_t = ops.project(x_t + step, x[live], norm, eps)
        return held, torch.stack(course) if not leave else torch.empty(0)


def _direction(g: Tensor, norm: str) -> Tensor:
    """Unit step uphill; for L1 along the twentieth of the pixels with the largest gradients, one is too few."""
    if norm != "l1":
        return ops.normalise(g, norm)
    rows = ops.flat(g)
    k = max(1, rows.shape[1] // 20)
    top = rows.abs().topk(k, dim=1).indices
    return torch.zeros_like(rows).scatter(1, top, rows.gather(1, top).sign() / k).view_as(g)


def _tolerance(p: float, n: int) -> float:
    """Difference of two rates that counts: half a point, two standard errors, and more than one image."""
    return max(0.005, 2 * (p * (1 - p) / n) ** 0.5, 1 / n)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
