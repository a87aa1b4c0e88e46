"""NRF: a Carlini-Wagner search whose gradient emphasises feature channels that tolerate little noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench import ops
from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from siegebench.oracle import Oracle
from siegebench.threat import Norm, ThreatModel
from siegebench.types import Count, MinimalAttack, Positive, Share

from .cw import SHRINK

TINY = 1e-10  # keeps the variances of dead channels above 0


@dataclass
class _Adam:
    """Adam's two moments, for a batch that loses rows over time."""

    m: Tensor
    v: Tensor
    k: int = 0

    def step(self, g: Tensor, lr: float) -> Tensor:
        self.k += 1
        self.m = 0.9 * self.m + 0.1 * g
        self.v = 0.999 * self.v + 0.001 * g * g
        return lr * (self.m / (1 - 0.9**self.k)) / ((self.v / (1 - 0.999**self.k)).sqrt() + 1e-8)


@dataclass(frozen=True, kw_only=True)
class NRF(MinimalAttack):
    """Minimises ||x' - x||^2 + c f(x') - <z', u> over x' = (tanh(w) + 1) / 2, with z' the feature maps of x'.

    Kim, Lee, Ro, "Distilling robust and non-robust features in adversarial examples by information bottleneck",
    NeurIPS 2021, arXiv 2204.02735. z are the maps [C, H, W] that the last convolution (or its batch norm) returns, f is
    the hinge max(0, z_y - max_{j != y} z_j) of the logits, and u the unit vector of -grad_z f on the chosen channels.

    Finding the channels: lambda_c = softplus(l_c) is the largest noise that leaves the prediction unchanged. Adam on l
    minimises CE(tail(z + lambda n)) + beta mean_c KL(N(z_c, var z_c) || N(z_c, lambda_c^2)), n ~ N(0, 1) one number a
    channel. A channel is robust where lambda_c^2 exceeds the largest spatial variance of a channel.

    Random: the noise n. Cost per sample: 1 + noise_steps forward and noise_steps backward passes, then at most `steps`
    of each.

    Differs from the paper: follows the authors' code, with these exceptions. The largest variance, the length of u and
    the early stop are per sample, not per batch. The stop uses ||x' - x||^2 + c f, and only for misclassified samples.
    The tanh is shrunk so that pixels at 0 and 1 can change. The largest logit is masked with -inf, not 0. The learning
    rate of w is a fiftieth of theirs (preset `published`). For a model without convolutions z is the image itself; a
    model whose last maps are single numbers is not supported. On cifar_resnet20 at most 8 of 64 channels are robust (6
    images), so that u is nearly the whole gradient.

    Attributes:
        steps: number of Adam steps on w.
        lr: learning rate of Adam on w.
        c: weight of f.
        channels: channels that the gradient emphasises.
        towards: false pushes z' away from u (the authors' NRF2 and RF2).
        noise_steps: number of Adam steps on l.
        noise_lr: learning rate of Adam on l.
        beta: weight of the KL term.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("l2",)

    steps: Count = 200
    lr: Positive = 0.002
    c: Positive = 0.1
    channels: Literal["non_robust", "robust"] = "non_robust"
    towards: bool = True
    noise_steps: Count = 200
    noise_lr: Positive = 0.1
    beta: Share = 0.3

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
        robust = self._robust(oracle, x, y, draws)
        mask = robust if self.channels == "robust" else ~robust
        x_adv, nearest = x.clone(), torch.full_like(x[:, 0, 0, 0], torch.inf)
        live, before = torch.arange(len(x), device=x.device), torch.full_like(nearest, torch.inf)
        w = torch.atanh(SHRINK * (2 * x - 1))
        adam = _Adam(torch.zeros_like(w), torch.zeros_like(w))
        for k in range(self.steps):
            tanh = w.tanh()
            x_k = (tanh + 1) / 2
            leaning = oracle[live].tapped(partial(_edited, edit=partial(self._lean, mask=mask[live])))
            g, z, f = leaning.gradient(x_k, partial(self._hinge, y=y[live]))
            far = ops.size(x_k - x[live], "l2")
            closer = (ops.margin(z, y[live]) > 0) & (far < nearest[live])
            x_adv[live] = torch.where(ops.over(closer, x_k), x_k, x_adv[live])
            nearest[live] = torch.where(closer, far, nearest[live])

            w = w - adam.step((2 * (x_k - x[live]) + g) * (1 - tanh * tanh) / 2, self.lr)
            if k % max(1, self.steps // 3) == 0:
                objective = far * far + f
                falls = ((objective < before) | nearest[live].isinf()).nonzero().squeeze(1)
                if not len(falls):
                    break
                live, w, before, adam.m, adam.v = (t[falls] for t in (live, w, objective, adam.m, adam.v))
        return x_adv

    def _hinge(self, z: Tensor, y: Tensor) -> Tensor:
        return self.c * (-ops.margin(z, y)).clamp(min=0)

    def _lean(self, g: Tensor, mask: Tensor) -> Tensor:
        """g at the feature maps plus (or minus) the unit vector of its chosen channels; both are 0 where f is 0."""
        u = ops.normalise(g * mask, "l2")
        return g + u if self.towards else g - u

    def _robust(self, oracle: Oracle, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        """Channels that tolerate more noise than the largest spatial variance of a channel, bool [n, C, 1, 1]."""
        kept: list[Tensor] = []
        oracle.tapped(partial(_read, to=kept)).logits(x)
        z = torch.stack(kept).mean(dim=0)
        if z[0, 0].numel() < 2:
            raise NotApplicable("the last feature maps are single numbers: they have no spatial variance")
        p = z.var(dim=(2, 3))
        l, adam = torch.zeros_like(p), _Adam(torch.zeros_like(p), torch.zeros_like(p))
        for t in range(self.noise_steps):
            scale = F.softplus(l)
            n = draws.normal((p.shape[1],), step=t, purpose="noise").to(p.dtype)
            kept.clear()
            noisy = oracle.tapped(partial(_disturb, noise=(scale * n)[:, :, None, None], to=kept))
            noisy.gradient(x, partial(ops.cross_entropy, y=y))
            g_z = (
                torch.stack(kept).mean(dim=0) if kept else torch.zeros_like(z)
            )  # no gradient if the defense is not differentiable
            q = scale * scale + TINY
            kl = scale * (1 / q - p / (q * q)) / p.shape[1]
            l = l - adam.step(((g_z.sum(dim=(2, 3)) * n) + self.beta * kl) * l.sigmoid(), self.noise_lr)
        return (F.softplus(l) ** 2 > p.amax(dim=1, keepdim=True))[:, :, None, None]


def _read(z: Tensor, to: list[Tensor]) -> Tensor:
    to.append(z.detach().clone())  # later layers may overwrite z in place
    return z


def _disturb(z: Tensor, noise: Tensor, to: list[Tensor]) -> Tensor:
    """Add noise to the maps, and append their gradient to `to` in the backward pass."""
    return _edited(z + noise, partial(_read, to=to))


def _edited(z: Tensor, edit: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the maps unchanged; `edit` is applied to their gradient in the backward pass."""
    z = z.clone()  # later layers may overwrite z in place, and a hook belongs to one tensor
    if z.requires_grad:
        z.register_hook(edit)
    return z
