"""SmoothInv: gradient descent on a smoothed classifier from one image; for a backdoored class it finds a trigger."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from siegebench.classifier import Classifier, frozen
from siegebench.data import Granted, ImageSet
from siegebench.draws import Draws, derive_seed
from siegebench.errors import NotApplicable
from siegebench.layers import batches
from siegebench.types import Count, ModelDetector, Number, Positive, Share, Verdict

from ._inversion import logits_of


@dataclass(frozen=True, kw_only=True)
class SmoothInv(ModelDetector):
    """Invert a trigger from a single image through a classifier that noise makes robust (Sun, Kolter, CVPR 2023).

    For a target t and an image x of another class, a perturbation d in the l2 ball of `eps` minimises

        -log mean_n softmax(f(clip(x + d, 0, 1) + n))_t,    n ~ N(0, sigma^2)

    with `noises` samples n in every step: gradient descent with momentum 0.9 on the normalised gradient, x + d clipped
    to [0, 1]. The quality of an inversion is the fraction of *other* clean images, not of class t, that d sends to t
    without noise (transfer ASR); the best over the sigmas, the mean over the start images.

    The paper inverts the trigger for a known target. Here, as a detector, every class is a target in turn. The score
    is the largest transfer ASR minus the median over the classes, and the model is called backdoored when it exceeds
    `threshold`. The target is the class with the largest.

    Random: which images are used, and the noise.

    Cost: classes x starts x sigmas x steps x noises forward and backward passes.

    Attributes:
        sigmas: standard deviations of the noise.
        noises: samples in each step.
        steps: of gradient descent.
        eps: radius of the ball.
        step: length of a step for a radius of 10; proportional to `eps`, halved after three quarters of the steps.
        starts: images x for each class.
        tested: other clean images at most, to measure the transfer ASR.
        together: targets optimised at once; fewer need less memory.
        threshold: on the score.

    Differs from the paper: the optional denoiser (one step of a diffusion model before f) is left out. The detector and
    its threshold are ours. Images of the target class do not count in the transfer ASR.
    """

    poisons: ClassVar[tuple[dict[str, Any], ...]] = ({"name": "wanet"},)  # a warp is no perturbation to add

    sigmas: tuple[Number, ...] = (0.12, 0.25, 0.5)
    noises: Count = 40
    steps: Count = 400
    eps: Positive = 10.0
    step: Positive = 0.5
    starts: Count = 1
    tested: Count = 200
    together: Count = 8
    threshold: Share = 0.5

    def judge(self, model: Classifier, data: Granted, draws: Draws) -> Verdict:
        if model.num_classes < 3:
            raise NotApplicable(f"{self!r}: needs at least 3 classes to compare, not {model.num_classes}")
        with frozen(model):
            asr, d = self.inverted(model, data.clean, derive_seed(draws.seed, "smoothinv"))
        score = float(asr.max() - asr.median())
        found = score > self.threshold
        pictures = dict(enumerate((0.5 + d).clamp(0, 1)))
        return Verdict(score, found, (int(asr.argmax()),) if found else (), pictures)

    def inverted(self, model: Classifier, clean: ImageSet, seed: int) -> tuple[Tensor, Tensor]:
        """(transfer ASR [classes] float64, perturbations [classes, C, H, W]) for every target; on the CPU."""
        parts = torch.arange(model.num_classes).split(self.together)
        found = [self.inverted_for(model, clean, part, seed) for part in parts]
        return torch.cat([asr for asr, _ in found]), torch.cat([d for _, d in found])

    def inverted_for(self, model: Classifier, clean: ImageSet, targets: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """The same for some of the targets [k]."""
        parameter = next(model.parameters())
        order = Draws(seed, clean.ids).order("images")
        labels, k = clean.labels[order], len(targets)
        usable = [(labels != t).nonzero().squeeze(1) for t in targets.tolist()]
        if min(map(len, usable)) < 2:
            raise NotApplicable(f"{self!r}: needs at least 2 clean images outside of each class: give more images")
        total, best, kept = torch.zeros(k).double(), torch.full((k,), -1.0).double(), torch.zeros(k, *clean.shape)
        for start in range(self.starts):
            first = torch.stack([order[u[start % len(u)]] for u in usable])
            others = [order[u[u != u[start % len(u)]][: self.tested]] for u in usable]
            x = clean.pixels(first, parameter.dtype).to(parameter.device)
            highest = torch.full((k,), -1.0).double()
            for sigma in self.sigmas:
                d = self.perturbation(model, x, targets, sigma, derive_seed(seed, start, sigma))
                asr = torch.stack([self._asr(model, clean, i, d[j], int(targets[j])) for j, i in enumerate(others)])
                better = asr > best
                best, kept[better] = torch.maximum(best, asr), d[better].cpu().to(kept.dtype)
                highest = torch.maximum(highest, asr)
            total += highest
        return total / self.starts, kept

    def perturbation(self, model: Classifier, x: Tensor, targets: Tensor, sigma: float, seed: int) -> Tensor:
        """d [k, C, H, W] for images x [k, C, H, W], one for each target."""
        goal = targets.to(x.device)
        noise, length = Draws(seed, goal), self.step * self.eps / 10
        d, speed = torch.zeros_like(x), torch.zeros_like(x)
        for step in range(self.steps):
            n = sigma * noise.normal((self.noises, *x.shape[1:]), step, "noise").to(x.dtype)
            d.requires_grad_(True)
            z = logits_of(model, seed, step)(((x + d)[:, None] + n).flatten(0, 1)).view(len(x), self.noises, -1)
            own = z.log_softmax(dim=2)[torch.arange(len(x)), :, goal]
            loss = -own.logsumexp(dim=1)  # the log of the mean probability, up to a constant
            (g,) = torch.autograd.grad(loss.sum(), d)
            with torch.no_grad():
                speed = 0.9 * speed + g / _norm(g).clamp(min=1e-12)
                d = d - length * (0.5 if step >= 0.75 * self.steps else 1.0) * speed
                d = d * (self.eps / _norm(d).clamp(min=1e-12)).clamp(max=1)
                d = (x + d).clamp(0, 1) - x
        return d

    @torch.no_grad()
    def _asr(self, model: Classifier, clean: ImageSet, index: Tensor, d: Tensor, target: int) -> Tensor:
        x, hits = clean.pixels(index, d.dtype), []
        for i in batches(x, d.device):
            draws = Draws(0, i.to(d.device)) if model.randomized else None
            hits.append(model((x[i].to(d.device) + d).clamp(0, 1), draws).argmax(dim=1).cpu() == target)
        return torch.cat(hits).double().mean()


def _norm(v: Tensor) -> Tensor:
    return v.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
