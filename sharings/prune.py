"""Pruning: only the largest entries of the gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from siegebench.draws import Draws
from siegebench.per_image import Gradients, flat
from siegebench.types import Share, Sharing


@dataclass(frozen=True, kw_only=True)
class Prune(Sharing):
    """Release the mean gradient with its smallest entries set to zero, over all parameters together.

    Zhu, Liu, Han, "Deep Leakage from Gradients", NeurIPS 2019, arXiv 1906.08935, section 5.2; the sparse gradients of
    Lin, Han, Mao, Wang, Dally, "Deep Gradient Compression", ICLR 2018. An attacker sees which entries are zero and
    compares the others.

    Nothing is random.

    Differs from the paper: no residuals are kept for the next step. The paper does not say over which layers it prunes.

    Attributes:
        share: fraction of the entries that is set to zero.
    """

    share: Share = 0.9

    def release(self, per_image: Gradients, draws: Draws) -> Gradients:
        mean = {name: g.mean(dim=1) for name, g in per_image.items()}
        size = flat(mean).abs()
        gone = round(self.share * size.shape[1])
        if gone == 0:
            return mean
        edge = size.kthvalue(gone, dim=1).values  # the largest entry that is set to zero
        return {k: torch.where(g.abs() > edge.view(-1, *[1] * (g.dim() - 1)), g, 0.0) for k, g in mean.items()}

    def shown(self, released: Gradients) -> Gradients:
        return {name: g != 0 for name, g in released.items()}
