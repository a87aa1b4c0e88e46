"""Spiking neurons, and the derivatives that stand in for that of a spike.

A spike is a step of the membrane potential: its derivative is zero wherever it exists. Training and attacks choose
another one for the backward pass; the forward pass never changes. A rule is a pure function (u, sigma) -> derivative of
u, the potential minus the threshold, and sigma, the standard deviation of the potential.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import torch
from torch import Tensor, nn

from siegebench.classifier import Classifier, Wrapped
from siegebench.draws import Draws

Rule = Literal["pdsg", "pdsg_centred", "atan", "triangle", "rect", "sigmoid", "ste", "zero"]


def _gauss(u: Tensor, mean: Tensor, sigma: Tensor) -> Tensor:
    return torch.exp(-0.5 * ((u - mean) / sigma).square()) / (sigma * math.sqrt(2 * math.pi))


def _sigmoid(u: Tensor, sigma: Tensor) -> Tensor:
    s = torch.sigmoid(4 * u)
    return 4 * s * (1 - s)


RULES: dict[Rule, Callable[[Tensor, Tensor], Tensor]] = {
    "pdsg": lambda u, sigma: _gauss(u, sigma / 2, sigma),
    "pdsg_centred": lambda u, sigma: _gauss(u, torch.zeros_like(sigma), sigma),
    "atan": lambda u, sigma: 1 / (1 + (math.pi * u).square()),
    "triangle": lambda u, sigma: (1 - u.abs()).clamp(min=0),
    "rect": lambda u, sigma: (u.abs() < 0.5).to(u.dtype),
    "sigmoid": _sigmoid,
    "ste": lambda u, sigma: torch.ones_like(u),
    "zero": lambda u, sigma: torch.zeros_like(u),
}
SCALED = ("pdsg", "pdsg_centred")  # those that use sigma

_CHOSEN: ContextVar[Rule | None] = ContextVar("rule", default=None)


@contextmanager
def using(rule: Rule) -> Iterator[None]:
    """Inside, forward passes remember this rule for their backward pass, whatever the neurons were trained with."""
    token = _CHOSEN.set(rule)
    try:
        yield
    finally:
        _CHOSEN.reset(token)


class _Spike(torch.autograd.Function):
    """Number of spikes: 1 where u >= 0; with `several`, one more for each further threshold that is reached."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, sigma: Tensor, rule: Rule, several: bool) -> Tensor:
        spikes = (u.floor() + 1).clamp(min=0) if several else (u >= 0).to(u.dtype)
        # of several thresholds, the nearest one is meant
        ctx.save_for_backward(u - u.round().clamp(min=0) if several else u, sigma)
        ctx.rule = rule
        return spikes

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor, None, None, None]:
        u, sigma = ctx.saved_tensors
        return grad[0] * RULES[ctx.rule](u, sigma), None, None, None


class _Spread:
    """Standard deviation of the potentials seen so far, of each sample and channel over space and time; no gradient."""

    def __init__(self) -> None:
        self.count, self.total, self.squares = 0, torch.zeros(()), torch.zeros(())

    @torch.no_grad()
    def after(self, v: Tensor) -> Tensor:
        space = tuple(range(2, v.dim())) if v.dim() > 2 else (1,)  # of a linear layer, over all its neurons
        self.count += math.prod(v.shape[d] for d in space)
        self.total = self.total.to(v) + v.sum(dim=space, keepdim=True)
        self.squares = self.squares.to(v) + v.square().sum(dim=space, keepdim=True)
        mean = self.total / self.count
        sigma = (self.squares / self.count - mean.square()).clamp(min=0).sqrt()
        return torch.where(sigma > 1e-6, sigma, torch.ones_like(sigma))


class Neurons(nn.Module):
    """Leaky integrate-and-fire neurons: currents [T, n, ...] to spikes of the same shape.

    v <- v - v / tau + current; a spike where v reaches the threshold 1; then v is 0 (`hard`), or 1 less for each spike.
    No gradient passes through the reset.

    Args:
        tau: time constant of the leak; None for neurons that only integrate.
        rule: of the backward pass, if none is chosen by `using`.
        hard: whether a spike resets the potential to 0.
        several: whether a neuron may spike more than once in a step.
        floor: the least potential; None for no limit.
    """

    def __init__(
        self, tau: float | None = 2.0, rule: Rule = "atan", *, hard: bool = True, several: bool = False,
        floor: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.tau, self.rule, self.hard, self.several, self.floor = tau, rule, hard, several, floor

    def forward(self, currents: Tensor) -> Tensor:
        rule = _CHOSEN.get() or self.rule
        v, spread, out = torch.zeros_like(currents[0]), _Spread(), []
        unused = torch.ones((), dtype=v.dtype, device=v.device)
        for current in currents:
            v = (v if self.tau is None else v - v / self.tau) + current
            s: Tensor = _Spike.apply(v - 1, spread.after(v) if rule in SCALED else unused, rule, self.several)
            v = v * (1 - s.detach()) if self.hard else v - s.detach()
            v = v if self.floor is None else v.clamp(min=self.floor)
            out.append(s)
        return torch.stack(out)


class Ruled(Wrapped):
    """A model whose backward passes use one rule for all its spikes; its answers are unchanged."""

    def __init__(self, inner: Classifier, rule: Rule) -> None:
        super().__init__(inner)
        self.rule = rule

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        with using(self.rule):
            return super().forward(x, draws)

    def backward_model(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        with using(self.rule):
            return super().backward_model(x, draws)
