"""Interval bound propagation: the interval of every layer follows from that of the layer before."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from siegebench.bounds import Ball, Op, intervals, margins

from ._bounds import BoundCertifier


@dataclass(frozen=True, kw_only=True)
class IBP(BoundCertifier):
    """Interval bounds of all layers, and of the margins z_y - z_k, whose last layer is fused with the difference.

    Gowal, Dvijotham, Stanforth, Bunel, Qin, Uesato, Arandjelovic, Mann, Kohli, "Scalable Verified Training for Provably
    Robust Image Classification", ICCV 2019, arXiv 1810.12715.

        affine: c' = W c + b, r' = |W| r;    monotone activation: l' = s(l), u' = s(u);    certified if all margins > 0

    Bounds of networks that were not trained for them (`ibp_training`) are far too wide: nothing is certified on such
    networks. In L2 the first layer is bounded by the norms of its rows; then the box of the ball is no longer used.

    Nothing is random. Cost: about three forward passes per radius, in float64.

    Differs from the paper: batch norms, pooling, residual sums and gates are bounded too. Inputs stay in the box of
    images. Margins must exceed 1e-5 of the largest logit, for the rounding of a network in float32.
    """

    def lower(self, ops: list[Op], ball: Ball, y: Tensor, enough: Tensor) -> Tensor:
        return margins(ops, intervals(ops, ball), y)
