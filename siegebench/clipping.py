"""Models that clip the images they are given: the gradient of a clip is zero where an attack needs it."""

from __future__ import annotations

import torch
from torch import Tensor

from siegebench import state
from siegebench.classifier import Classifier, Wrapped
from siegebench.draws import Draws

INSIDE = 1e-6  # distance from 0 and 1 of the points whose gradients a model gives that clips its images


class Unclipped(Wrapped):
    """Gradients at pixels of 0 and 1 are those just inside, for a model that clips the images it is given.

    In torch 2.15, the gradient of torch.clamp is zero at the two limits themselves. Such a clip changes no answer, but
    gradient steps could never move a black or white pixel.
    """

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        return super().forward(self._inside(x), draws)

    def backward_model(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        return super().backward_model(self._inside(x), draws)

    @staticmethod
    def _inside(x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and x.requires_grad):
            return x
        return x + (x.clamp(INSIDE, 1 - INSIDE) - x).detach()


def clips(model: Classifier, x: Tensor) -> bool:
    """Whether the gradient of a model is zero at pixels of 0 and 1, and is not just inside.

    Args:
        x: one or more images [n, ...] in [0, 1].
    """
    if (model.kind.low, model.kind.high) != (0, 1) or not x.is_floating_point():
        return False
    x = x[:2].detach()
    draws = Draws(0, torch.arange(len(x), device=x.device)) if model.randomized else None
    ends = torch.arange(x.numel(), device=x.device).view_as(x) % 4  # a quarter of the pixels black, a quarter white
    border = ends < 2

    def slopes(distance: float) -> Tensor:
        """Absolute gradients of the largest logit at those pixels, with these at a distance from 0 or 1."""
        ended = torch.where(ends == 0, distance, 1 - distance)
        leaf = torch.where(border, ended.to(x), x.clamp(INSIDE, 1 - INSIDE)).requires_grad_(True)
        with torch.enable_grad(), state.kept(model):
            z = model(leaf, draws)
            if not z.requires_grad:
                return torch.zeros_like(x)[border]
            (g,) = torch.autograd.grad(z.amax(dim=1).sum(), leaf, allow_unused=True)
        return torch.zeros_like(x)[border] if g is None else g.abs()[border]

    try:
        at, inside = slopes(0.0), slopes(INSIDE)
    except Exception:  # a model without gradients: attacks that need them say so
        return False
    reached = inside > 0
    return bool(reached.any()) and not bool((at[reached] > 0).any())
