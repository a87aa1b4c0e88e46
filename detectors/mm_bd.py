"""MM-BD: the largest margin that a class can have over all inputs is an outlier for a backdoored class."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from scipy.stats import gamma
from torch import Tensor

from siegebench import ops
from siegebench.classifier import Classifier, frozen
from siegebench.data import Granted
from siegebench.draws import Draws, derive_seed
from siegebench.errors import NotApplicable
from siegebench.types import Count, ModelDetector, Positive, Share, Verdict

from ._inversion import logits_of

SMALLEST = 1e-300  # p-value; smaller ones are not told apart
FEWEST = 4  # classes: a Gamma distribution with three free parameters is fitted to all but one


@dataclass(frozen=True, kw_only=True)
class MMBD(ModelDetector):
    """Maximise the margin of every class over the input, without any image (Wang, Xiang, Miller, Kesidis, 2024).

    For each class t, from `images` uniformly random images, gradient ascent on

        z_t(x) - max_{c != t} z_c(x).

    r_t is the largest margin over the images. A Gamma distribution (free shape, location and scale) with distribution
    function F is fitted to all r_t except the largest, r_max, and

        p = 1 - F(r_max)^K

    for K classes. The model is called backdoored when p <= `level`; its target is the class of r_max. The score is
    -log p.

    A clean model is called backdoored with probability `level` by construction. With ten classes the distribution is
    fitted to nine numbers. If every class is a target (all-to-all), r_max may be no outlier, and the backdoor is then
    missed.

    Only the shape of the clean images is used.

    Random: the images at the start.

    Cost: at most classes x images x steps forward and backward passes.

    Attributes:
        images: starts of each class.
        steps: at most, for each class.
        lr: of gradient ascent; pixels outside [0, 1] are clipped before the network sees them.
        momentum: of gradient ascent.
        stall: a class stops when the sum of its margins changes by less than this fraction in a step.
        together: classes optimised at once; fewer need less memory.
        level: of the test.

    Differs from the paper: in the published code a new optimiser is created in every step, so its momentum of 0.2 has
    no effect; here it has one. The margin is that of the last step, as in the published code.
    """

    # every class is a target, so the margin of none is an outlier
    poisons: ClassVar[tuple[dict[str, Any], ...]] = ({"name": "badnets.all_to_all"},)

    images: Count = 30
    steps: Count = 300
    lr: Positive = 1e-2
    momentum: Share = 0.2
    stall: Positive = 1e-5
    together: Count = 8
    level: Share = 0.05

    def judge(self, model: Classifier, data: Granted, draws: Draws) -> Verdict:
        if model.num_classes < FEWEST:
            raise NotApplicable(
                f"{self!r}: needs at least {FEWEST} classes to fit a Gamma distribution, not {model.num_classes}"
            )
        with frozen(model):
            r = self.margins(model, data.clean.shape, derive_seed(draws.seed, "mm-bd"))
        log_p = log_p_value(r)
        found = log_p <= math.log(self.level) if self.level > 0 else False
        return Verdict(-log_p, found, (int(r.argmax()),) if found else ())

    def margins(self, model: Classifier, shape: tuple[int, ...], seed: int) -> Tensor:
        """r_t [classes], float64, for images of the shape [C, H, W]."""
        parts = torch.arange(model.num_classes).split(self.together)
        return torch.cat([self._largest(model, part, shape, seed) for part in parts])

    def _largest(self, model: Classifier, targets: Tensor, shape: tuple[int, ...], seed: int) -> Tensor:
        parameter = next(model.parameters())
        goal = targets.to(parameter.device)
        x = Draws(seed, goal).uniform((self.images, *shape), purpose="start").to(parameter.dtype)  # [k, n, C, H, W]
        speed, before = torch.zeros_like(x), torch.full((len(goal),), float("inf"), device=x.device, dtype=x.dtype)
        active = torch.arange(len(goal), device=x.device)
        r = torch.zeros(len(goal), device=x.device, dtype=x.dtype)
        for step in range(1, self.steps + 1):
            x.requires_grad_(True)
            z = logits_of(model, seed, step)(x.flatten(0, 1).clamp(0, 1))
            margins = -ops.margin(z, goal[active].repeat_interleave(self.images)).view(len(active), -1)
            (g,) = torch.autograd.grad(margins.sum(), x)
            with torch.no_grad():
                r[active] = margins.amax(dim=1)
                total = margins.sum(dim=1)
                speed = self.momentum * speed + g
                x = x + self.lr * speed
                go = (total - before).abs() >= self.stall * before.abs()  # inf >= inf in the first step
                x, speed, before, active = x[go], speed[go], total[go], active[go]
            if not len(active):
                break
        return r.double().cpu()


def log_p_value(r: Tensor) -> float:
    """log(1 - F(r_max)^K) for margins [K], with the Gamma distribution F that is fitted to all but the largest.

    At least log(1e-300); 0 when all margins are equal.
    """
    largest, rest = float(r.max()), r[torch.arange(len(r)) != int(r.argmax())].numpy()
    if rest.max() - rest.min() <= 1e-9 * abs(rest).max():  # no distribution to fit
        return 0.0 if largest <= rest.max() + 1e-9 * abs(largest) else math.log(SMALLEST)
    shape, location, scale = gamma.fit(rest)
    above = float(gamma.sf(largest, shape, loc=location, scale=scale))
    p = -math.expm1(len(r) * math.log1p(-above)) if above < 1 else 1.0
    return math.log(max(p, SMALLEST))
