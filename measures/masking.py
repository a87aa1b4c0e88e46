"""Masking: signs of masked gradients that can be seen on a single model. Such a model only appears robust."""

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

from ._cross_checks import agreement_of_means, by_chance, inside, slopes

ZERO = 1e-12  # a gradient without a larger entry counts as zero
SAME = 1e-4  # two normalised outputs within this distance count as equal
PROBABILITY = 1e-5  # tolerance for the rounding of a softmax
MEANS, ALIKE = 5, 0.1  # passes in a mean gradient, and the least cosine of two such means
SWEEP = (0.5, 1.0, 2.0, 4.0)  # multiples of the eps of the threat model; the whole box comes last


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
    """Checks for the signs of masked gradients that Carlini et al. and Athalye et al. describe.

    Carlini et al., "On Evaluating Adversarial Robustness", 2019; Athalye, Carlini, Wagner, "Obfuscated Gradients Give a
    False Sense of Security", ICML 2018. The thresholds of the checks on outputs follow AutoAttack (Croce & Hein, ICML
    2020).

    Checks, on correctly classified images:
        repeated passes on the same image agree, unless the model declares itself randomised
        outputs are logits, finite, with finite gradients
        the gradient is not zero: neither through the deployed model, nor under cross-entropy alone
        PGD on the margin, from the image itself and through the backward model: more images are misclassified as eps
        grows, all but chance in the whole box; the loss rises; twice the steps gain nothing more
        the gradient predicts how the margin changes along random directions (finite differences) twice the restarts
        gain nothing more, and random points break no image that PGD does not with frozen noise, a randomised model is
        broken as often as the network inside it, and two mean gradients agree

    Checks that compare several attacks are made on the finished rows.

    Random: only the model. For a randomised model, outputs and gradients are averaged over `averaged` passes. In all
    PGD runs but the two at the eps of the threat model, an image is no longer attacked once it is misclassified.

    Differs from the sources: rates are computed on few images, so a difference must exceed one image and two binomial
    standard errors. The median fraction of improving steps counts only the steps needed to reach the radius of the
    ball, because the sign of the gradient zigzags at its boundary. More steps must gain on images that are still
    correctly classified.

    Attributes:
        samples: number of images, the first of the batch.
        steps: of PGD, each 2.5 eps / steps long.
        restarts: of PGD from random points, on the images that PGD from the image leaves; as many are added.
        tries: random points in the ball of each image that is left after that.
        looks: forward passes per image that are compared to detect randomness.
        averaged: forward passes averaged for each output of a randomised model.
    """

    samples: Count = 32
    steps: Count = 20
    restarts: Count = 5
    tries: Count = 100
    looks: Count = 5
    averaged: Count = 4

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> dict[str, Any]:
        report = _Report()
        first = slice(self.samples)
        oracle, x, y = oracle[first], x[first], y[first]
        if not len(x):
            return report.as_dict()
        usable = self._outputs(oracle, x, report) and self._gradients(oracle, x, y, report)
        if usable:  # an attack on NaN outputs or gradients shows nothing
            self._slopes(oracle, x, y, draws[first], report)
            left = self._sweep(oracle.as_attacked(self.averaged), x, y, threat, report)
            if threat.eps > 0:
                self._more(oracle, x, y, threat, draws[first], left, report)
        return report.as_dict()

    def _outputs(self, oracle: Oracle, x: Tensor, report: _Report) -> bool:
        """Outputs are finite, repeatable, and logits."""
        n = len(x)
        z = torch.stack([oracle.logits(x) for _ in range(self.looks)], dim=1)  # [n, looks, classes]
        invalid = int((~torch.isfinite(z)).flatten(1).any(dim=1).sum())
        if invalid:
            report.flag("nan", "fail", f"{invalid} of {n} images have outputs that are not finite")
            return False
        unit = F.normalize(z.double(), dim=2)
        spread = float(torch.cdist(unit, unit, compute_mode="donot_use_mm_for_euclid_dist").amax())
        changed = int((z.argmax(dim=2) != z.argmax(dim=2)[:, :1]).any(dim=1).sum())
        report.metrics["look_spread"] = spread
        if (changed or spread > SAME) and not oracle.model.randomized:
            report.flag(
                "randomness_undeclared",
                "fail",
                f"{self.looks} passes on the same image give outputs up to {spread:.2g} apart, the predicted class of "
                f"{changed} of {n} images changes, and the model does not declare itself randomised",
            )
        positive = z.amin() > -PROBABILITY and z.amax() < 1 + PROBABILITY
        if positive and bool(((z.sum(dim=2) - 1).abs() < PROBABILITY).all()):
            report.flag("not_logits", "flag", f"the outputs of all {n} images are probabilities, not logits")
        return True

    def _gradients(self, oracle: Oracle, x: Tensor, y: Tensor, report: _Report) -> bool:
        """Gradients are finite, and neither zero for the margin nor zero for the cross-entropy alone."""
        n = len(x)
        ce, margin = partial(ops.cross_entropy, y=y), partial(ops.margin, y=y)
        before = oracle.ledger.undefined[oracle.rows].clone()
        gradients = {
            "ce": oracle.gradient(x, ce)[0],
            "margin": oracle.gradient(x, margin)[0],
            "surrogate": oracle.backward_model().gradient(x, margin)[0],
        }
        undefined = oracle.ledger.undefined[oracle.rows] > before  # the oracle returns zeros for NaN
        zero = {}
        for name, g in gradients.items():
            zero[name] = float(((ops.size(g, "linf") < ZERO) & ~undefined).double().mean())
            report.metrics[f"zero_gradient_{name}"] = zero[name]
        invalid = int(undefined.sum())
        if invalid:
            report.flag("nan", "fail", f"{invalid} of {n} images have gradients that are not finite")
        if zero["margin"] > 0.01:
            no_direction = zero["margin"] > 0.20 and zero["surrogate"] > 0.20
            report.flag(
                "zero_gradients",
                "fail" if no_direction else "flag",
                f"the gradient of the margin is zero for {_percent(zero['margin'])} of {n} images through the "
                f"deployed model, and for {_percent(zero['surrogate'])} through its backward model",
            )
        if zero["ce"] - zero["margin"] > 0.05:
            report.flag(
                "saturated_softmax",
                "flag",
                f"the gradient is zero for {_percent(zero['ce'])} of {n} images with the cross-entropy and for "
                f"{_percent(zero['margin'])} with the margin: large logits saturate the softmax",
            )
        return not invalid

    def _slopes(self, oracle: Oracle, x: Tensor, y: Tensor, draws: Draws, report: _Report) -> None:
        """The gradient predicts how the margin changes along random directions."""
        found = slopes(oracle, x, y, draws)
        if found is None:  # no gradient at all has a flag of its own
            return
        report.metrics["slope_correlation"], report.metrics["slope_signs"] = found.correlation, found.agreement
        if found.apart:
            report.flag(
                "gradient_mismatch",
                "flag",
                f"small steps in {found.pairs} random directions change the margin otherwise than its gradient says: "
                f"correlation {found.correlation:.2f}, the same sign in {_percent(found.agreement)}",
            )

    def _more(
        self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws, left: Tensor, report: _Report
    ) -> None:
        """More restarts, random points, and frozen noise; on images that PGD from x leaves, with frozen noise.

        Args:
            left: images that PGD left, bool [n].
        """
        n, norm, eps = len(x), threat.norm, threat.eps
        exact = oracle.frozen()
        if oracle.model.randomized:
            left, _ = self._pgd(exact.backward_model(), x, y, norm, eps, 2 * self.steps, leave=True)
            self._frozen(oracle, x, y, threat, int((~left).sum()), report)
            alike = agreement_of_means(oracle.as_attacked(MEANS), x, y)
            report.metrics["agreement_of_means"] = alike
            if alike < ALIKE:
                told = f"two gradients, each the mean of {MEANS} passes, have a median cosine of {alike:.2f}: noise"
                report.flag("too_few_passes", "flag", f"{told} hides the gradient, so average over many more passes")
        gained = [0, 0]
        for k in range(2 * self.restarts):
            rest = left.nonzero().squeeze(1)
            if not len(rest):
                break
            u = 2 * draws[rest].uniform(tuple(x.shape[1:]), k, "restart").to(x) - 1
            start = ops.project(x[rest] + eps * (u if norm == "linf" else ops.normalise(u, norm)), x[rest], norm, eps)
            view = exact.backward_model()[rest]
            left[rest], _ = self._pgd(view, x[rest], y[rest], norm, eps, self.steps, leave=True, start=start)
            gained[k // self.restarts] += len(rest) - int(left.sum())
        report.metrics["gain_of_twice_the_restarts"] = gained[1] / n
        if gained[1] > max(1.0, 0.005 * n):
            report.flag(
                "restarts_still_gain",
                "flag",
                f"with {2 * self.restarts} restarts instead of {self.restarts}, {gained[1]} more of {n} images are "
                "misclassified",
            )
        rest = left.nonzero().squeeze(1)
        lucky = int(by_chance(exact[rest], x[rest], y[rest], threat, draws[rest], self.tries).sum()) if len(rest) else 0
        report.metrics["broken_by_chance_only"] = lucky / n
        if lucky:
            report.flag(
                "chance_beats_gradient",
                "fail" if lucky > max(1.0, 0.01 * n) else "flag",
                f"{self.tries} random points break {lucky} of {n} images that PGD with {2 * self.restarts} restarts "
                "does not",
            )

    def _frozen(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, broken: int, report: _Report) -> None:
        """With the same noise in every pass, PGD breaks a randomised model about as often as the network inside."""
        network = inside(oracle.model)
        if network is None:
            return
        n = len(x)
        bare, _ = self._pgd(oracle.of(network), x, y, threat.norm, threat.eps, 2 * self.steps, leave=True)
        frozen, plain = broken / n, 1 - float(bare.double().mean())
        report.metrics["broken_frozen"], report.metrics["broken_inside"] = frozen, plain
        if frozen < 0.95 * plain - _tolerance(plain, n):
            report.flag(
                "frozen_noise_resists",
                "flag",
                f"PGD breaks {_percent(plain)} of {n} images on the network inside, and {_percent(frozen)} on the "
                "model with the same noise in every pass: it is not the randomness that resists",
            )

    def _sweep(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, report: _Report) -> Tensor:
        """Accuracy against eps up to the whole box, and the loss along the runs at the eps of the threat model.

        Returns:
            Which images are still correctly classified after these runs, bool [n].
        """
        n, d = len(x), x[0].numel()
        whole = {"linf": 1.0, "l2": d**0.5, "l1": float(d)}[threat.norm]
        attack = partial(self._pgd, oracle, x, y, threat.norm)
        curve = {0.0: int((oracle.labels(x) == y).sum())}
        left = torch.ones_like(y, dtype=torch.bool)
        for eps in sorted({whole, *(min(k * threat.eps, whole) for k in SWEEP)} - {0.0}):
            if eps == threat.eps:
                correct, loss = attack(eps, self.steps, leave=False)
                twice = attack(eps, 2 * self.steps, leave=False)
                self._course(correct, loss, *twice, report)
                left = correct & twice[0]
            else:
                correct, _ = attack(eps, self.steps, leave=True)
            curve[eps] = int(correct.sum())
        points = list(curve.items())
        report.metrics.update({f"sweep@{eps:.6g}": count / n for eps, count in points})
        chance = 1 / oracle.num_classes
        last = points[-1][1] / n
        if last > chance + _tolerance(chance, n):
            report.flag(
                "eps_sweep_not_zero",
                "fail",
                f"{_percent(last)} of {n} images are still correctly classified at {threat.norm} {whole:.4g}, where "
                f"every image is allowed; guessing gets {_percent(chance)}",
            )
        for (small, before), (large, after) in pairwise(points):
            if (after - before) / n > _tolerance(before / n, n):
                report.flag(
                    "not_monotone",
                    "fail",
                    f"{after} of {n} images are correctly classified at {threat.norm} {large:.4g}, only {before} at "
                    f"{small:.4g}",
                )
                break
        return left

    def _course(self, correct: Tensor, loss: Tensor, correct2: Tensor, loss2: Tensor, report: _Report) -> None:
        """Checks the loss [steps + 1, n] along a run, and along a second run of twice the steps."""
        n = len(correct)
        risen = float((loss[-1] > loss[0]).double().mean())
        straight = max(1, round(0.4 * self.steps))  # steps of 2.5 eps / steps that add up to eps
        rises = (loss[1:] > loss[:-1])[:straight].double().mean(dim=0)
        improving = float(rises.median())
        report.metrics["loss_risen"], report.metrics["improving_steps"] = risen, improving
        if risen < 0.95 or improving < 0.5:
            report.flag(
                "loss_not_increasing",
                "flag",
                f"the margin loss is higher at the end than at the start for {_percent(risen)} of {n} images; for the "
                f"median image it rises in {_percent(improving)} of the first {straight} steps",
            )
        fewer = int(correct.sum()) - int(correct2.sum())
        rest = correct.nonzero().squeeze(1)
        once, twice = (float((run.amax(dim=0) - run[0])[rest].sum()) for run in (loss, loss2))
        growing = len(rest) > 1 and twice > 1.05 * once
        gain = twice / once - 1 if once > 0 else float(twice > 0)
        report.metrics["gain_of_twice_the_steps"] = gain if len(rest) else 0.0
        if fewer > max(1.0, 0.005 * n) or growing:
            report.flag(
                "loss_still_rising",
                "flag",
                f"with {2 * self.steps} steps instead of {self.steps}, {fewer} more of {n} images are misclassified; "
                f"on the other {len(rest)} the loss rises {_percent(gain)} further",
            )

    def _pgd(
        self,
        oracle: Oracle,
        x: Tensor,
        y: Tensor,
        norm: str,
        eps: float,
        steps: int,
        leave: bool,
        start: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """PGD on the margin, from x or another start.

        An image counts as misclassified when any iterate is. For a randomised model, where one of many iterates may be
        misclassified by chance, only the last iterate counts.

        Args:
            leave: stop attacking an image once it is misclassified.

        Returns:
            Which images stay correctly classified, bool [n], and the losses [steps + 1, n] (empty if `leave`).
        """
        correct, course = torch.ones_like(y, dtype=torch.bool), []
        noisy = oracle.model.randomized and not oracle.same_noise
        live, x_t = torch.arange(len(x), device=x.device), x if start is None else start
        for t in range(steps + 1):
            g, z, value = oracle[live].gradient(x_t, partial(ops.margin, y=y[live]))
            course.append(value)
            now = z.argmax(dim=1) == y[live]
            correct[live] = now if noisy else now & correct[live]
            rest = correct[live].nonzero().squeeze(1) if leave and not noisy else slice(None)
            live, x_t, g = live[rest], x_t[rest], g[rest]
            if t == steps or not len(live):
                break
            step = (2.5 * eps / steps) * _direction(g.nan_to_num(0.0), norm)
            x_t = ops.project(x_t + step, x[live], norm, eps)
        return correct, torch.stack(course) if not leave else torch.empty(0)


def _direction(g: Tensor, norm: str) -> Tensor:
    """Unit step of steepest ascent; for L1 along the 5 % of the values with the largest gradients (one is too few)."""
    if norm != "l1":
        return ops.normalise(g, norm)
    rows = ops.flat(g)
    k = max(1, rows.shape[1] // 20)
    top = rows.abs().topk(k, dim=1).indices
    return torch.zeros_like(rows).scatter(1, top, rows.gather(1, top).sign() / k).view_as(g)


def _tolerance(p: float, n: int) -> float:
    """What a difference of two rates must exceed to count: half a point, two standard errors, and one image."""
    return max(0.005, 2 * (p * (1 - p) / n) ** 0.5, 1 / n)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"
