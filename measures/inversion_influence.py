"""Inversion influence: how much noise on a shared gradient protects an image, and a lower bound of the error."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import jvp, vmap

from siegebench.classifier import Classifier, copied
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.per_image import batched, flat
from siegebench.threat import ThreatModel
from siegebench.types import Count, Measure, Positive

TOGETHER = 64  # directions whose derivatives are computed at once
POWER = 100  # steps of the power iteration
DECIBELS = 15  # of the recovered image, at which the protection is stated


@dataclass(frozen=True, kw_only=True)
class InversionInfluence(Measure):
    """x* - x0 = (J J' + e I)^-1 J delta: the error of an attacker who matches a gradient g with noise delta.

    Zhang, Hong, Zhou et al., "Understanding Deep Gradient Leakage via Inversion Influence Functions", NeurIPS 2023,
    arXiv 2309.13016. J = d g / d x [d, P] is the derivative of the gradient of one image in the image, with its label
    known. `bound` is the paper's lower bound |J delta| / lambda_max(J J'). `measured` is the distance of x0 to the
    nearest image whose gradient matches the noisy one best, found by Newton steps with J J' from x0. All are root mean
    squares over the pixels, medians over the images.

    Metrics, for noise of standard deviation sigma in each entry:
        measured, predicted, bound       for the same draw of the noise
        expected                         sigma sqrt(tr (J J')^-1 / d), over draws
        sigma_15db                       sigma at which `expected` leaves a PSNR of 15 dB; the median image
        sigma_15db_low, sigma_15db_ratio the 5 % quantile (the image that is protected least), and 95 % over 5 %

    All are valid for small noise and for an attacker who ends near x0.

    Random: the noise.

    Cost: d derivatives of a gradient for each image, and the inverse of a matrix [d, d] in float64: a second for a grey
    image of 32 pixels, a minute for a colour image.

    Differs from the paper: sigma_15db is ours; e is relative to the mean of the diagonal of J J'.

    Attributes:
        images: number of images.
        sigma: standard deviation of the noise.
        damping: e.
        newton: steps of the measured attack.
    """

    every: ClassVar[bool] = True

    images: Count = 8
    sigma: Positive = 1e-3
    damping: Positive = 1e-9
    newton: Count = 20

    def quick(self) -> InversionInfluence:
        return replace(self, images=1, newton=2)

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> dict[str, Any]:
        model = copied(oracle.model).double().eval()
        labels = F.one_hot(y, oracle.num_classes).double()
        count = min(self.images, len(x))
        rows = [self._of(model, x[i : i + 1].double(), labels[i : i + 1], draws[i : i + 1]) for i in range(count)]
        found = {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in rows[0]}
        protected = found["sigma_15db"]
        low, high = protected.quantile(0.05), protected.quantile(0.95)
        metrics = {name: float(values.median()) for name, values in found.items()}
        metrics |= {"sigma_15db_low": float(low), "sigma_15db_ratio": float(high / low), "images": float(count)}
        return {"metrics": metrics, "flags": []}

    def _of(self, model: Classifier, x: Tensor, y: Tensor, draws: Draws) -> dict[str, float]:
        """All figures of one image."""
        d = x.numel()

        def gradient(image: Tensor) -> Tensor:
            return flat(batched(model, image.view(1, *x.shape), y[None]))[0]

        j = jacobian(gradient, x.flatten())
        h = j @ j.T
        h.diagonal().add_(self.damping * h.diagonal().mean())
        root = torch.linalg.cholesky(h)
        inverse_trace = float(torch.cholesky_inverse(root).diagonal().sum())
        delta = self.sigma * draws.normal((j.shape[1],), purpose="noise")[0].to(j)
        predicted = torch.cholesky_solve((j @ delta)[:, None], root)[:, 0]
        target, at = gradient(x.flatten()).detach() + delta, x.flatten()
        for _ in range(self.newton):
            leaf = at.detach().requires_grad_(True)
            residual = gradient(leaf) - target
            (slope,) = torch.autograd.grad(0.5 * residual.square().sum(), leaf)
            at = at - torch.cholesky_solve(slope[:, None], root)[:, 0]
        rms = math.sqrt(d)
        return {
            "measured": float((at - x.flatten()).norm()) / rms,
            "predicted": float(predicted.norm()) / rms,
            "bound": float((j @ delta).norm()) / largest(h) / rms,
            "expected": self.sigma * math.sqrt(inverse_trace / d),
            "sigma_15db": 10 ** (-DECIBELS / 20) * math.sqrt(d / inverse_trace),
        }


def jacobian(gradient: Any, x: Tensor) -> Tensor:
    """The derivatives of a gradient [P] in x [d]: [d, P], by forward mode."""

    def along(v: Tensor) -> Tensor:
        out: Tensor = jvp(gradient, (x,), (v,))[1]
        return out

    directions = torch.eye(len(x), dtype=x.dtype, device=x.device).split(TOGETHER)
    return torch.cat([vmap(along)(v).detach() for v in directions])


def largest(h: Tensor) -> float:
    """The largest eigenvalue of a symmetric positive matrix, from below."""
    v = torch.ones(len(h), dtype=h.dtype, device=h.device)
    for _ in range(POWER):
        v = h @ (v / v.norm())
    return float(v.norm())
