"""Shared by certifiers that bound a network: the loop over the radii, and the rounding."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from siegebench.bounds import Ball, Op
from siegebench.classifier import Classifier, copied
from siegebench.draws import Draws
from siegebench.threat import Norm
from siegebench.traced import operations
from siegebench.types import Certificate, Certifier

ROUNDING = 1e-5  # of the logits, by a network in float32; bounds are computed in float64


class BoundCertifier(Certifier):
    """A certifier that bounds the margins z_y - z_k of a network from below; a certificate needs all above zero."""

    norms: ClassVar[frozenset[Norm]] = frozenset({"linf", "l2"})

    @abstractmethod
    def lower(self, ops: list[Op], ball: Ball, y: Tensor, enough: Tensor) -> Tensor:
        """Lower bounds of z_y - z_k on the ball, [n, classes], infinite for k = y; float64.

        Args:
            enough: [n]; an image whose bounds are above it is certified, better ones are not needed.
        """

    def together(self, ops: list[Op], x: Tensor, classes: int) -> int:
        """How many images to bound at once."""
        return 64

    def certify(self, model: Classifier, x: Tensor, norm: Norm, radii: Sequence[float], draws: Draws) -> Certificate:
        z = model(x)
        y = z.argmax(dim=1)
        slack = ROUNDING * z.abs().amax(dim=1).clamp(min=1).double()
        ops = operations(copied(model).double(), x.double())
        holds = torch.zeros(len(radii), len(x), dtype=torch.bool, device=x.device)
        left = torch.arange(len(x), device=x.device)  # what holds at a radius holds at all smaller ones
        for k, radius in enumerate(radii):
            if not len(left):
                break
            kept = []
            for rows in left.split(max(1, self.together(ops, x, model.num_classes))):
                ball = Ball(x[rows].double(), norm, radius, model.kind.low, model.kind.high)
                low = self.lower(ops, ball, y[rows], slack[rows])
                kept.append(rows[low.amin(dim=1) > slack[rows]])
            left = torch.cat(kept)
            holds[k, left] = True
        return Certificate(y, holds)
