"""Attribution maps of one class, [n, H, W] with signs: gradients of its logit, Grad-CAM, and the answers to masks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench import ops
from siegebench.draws import Draws
from siegebench.oracle import Oracle

from . import _maps

CELLS, KEPT = 7, 0.5  # of the masks of RISE: cells in each direction, and the probability that one is open
NOISE = 0.1  # standard deviation of the noise of SmoothGrad

Attribution = Callable[[Oracle, Tensor, Tensor, Draws], Tensor]


def gradient(oracle: Oracle, x: Tensor, c: Tensor, draws: Draws) -> Tensor:
    """dz_c / dx, summed over the colours (Simonyan, Vedaldi, Zisserman, arXiv 1312.6034)."""
    return _slope(oracle, x, c).sum(dim=1)


def input_x_gradient(oracle: Oracle, x: Tensor, c: Tensor, draws: Draws) -> Tensor:
    """x dz_c / dx, summed over the colours (Shrikumar et al., arXiv 1605.01713)."""
    return (x * _slope(oracle, x, c)).sum(dim=1)


def smooth_gradient(oracle: Oracle, x: Tensor, c: Tensor, draws: Draws, samples: int = 20) -> Tensor:
    """SmoothGrad: the mean gradient at x + N(0, 0.1^2) (Smilkov et al., arXiv 1706.03825)."""
    total = torch.zeros_like(x)
    for k in range(samples):
        noise = NOISE * draws.normal(tuple(x.shape[1:]), k, "smooth").to(x)
        total += _slope(oracle, x + noise, c) / samples
    return total.sum(dim=1)


def integrated_gradients(oracle: Oracle, x: Tensor, c: Tensor, draws: Draws, points: int = 32) -> Tensor:
    """x times the mean gradient on the way from black to x (Sundararajan, Taly, Yan, ICML 2017, arXiv 1703.01365)."""
    total = torch.zeros_like(x)
    for k in range(points):
        total += _slope(oracle, (k + 0.5) / points * x, c) / points
    return (x * total).sum(dim=1)


def grad_cam(oracle: Oracle, x: Tensor, c: Tensor, draws: Draws) -> Tensor:
    """ReLU(sum_k w_k A_k) of the last convolution, w_k the mean of dz_c / dA_k (Selvaraju et al., arXiv 1610.02391)."""
    maps: list[Tensor] = []
    slopes: list[Tensor] = []

    def keep(a: Tensor) -> Tensor:
        maps.append(a.detach())
        if a.requires_grad:
            a.register_hook(slopes.append)
        return a

    oracle.tapped(keep).gradient(x, partial(_maps.own, c=c))
    total = sum((s.mean(dim=(2, 3), keepdim=True) * a for s, a in zip(slopes, maps, strict=True)), torch.zeros(()))
    h = total.sum(dim=1, keepdim=True).clamp(min=0)
    return F.interpolate(h, tuple(x.shape[2:]), mode="bilinear", align_corners=False).squeeze(1)


def rise(oracle: Oracle, x: Tensor, c: Tensor, draws: Draws, masks: int = 500) -> Tensor:
    """Covariance of the probability of c with random masks (Petsiuk, Das, Saenko, BMVC 2018, arXiv 1806.07421).

    The authors' map is the mean of probability times mask; the mean of both is subtracted here, so that pixels that do
    not matter get 0.
    """
    weighted, total, opened = torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0, 0, 0]), torch.zeros_like(x[:, 0])
    for k in range(masks):
        m = _mask(x, draws, k)
        p = _maps.own(oracle.logits(x * m[:, None]).softmax(dim=1), c)
        weighted, total, opened = weighted + ops.over(p, m) * m / masks, total + p / masks, opened + m / masks
    return weighted - ops.over(total, opened) * opened


def _mask(x: Tensor, draws: Draws, k: int) -> Tensor:
    """Cells that are open or not, enlarged with soft edges and moved by less than a cell, [n, H, W] in [0, 1]."""
    height, width = x.shape[2:]
    cell = [-(-side // CELLS) for side in (height, width)]
    open_ = (draws.uniform((CELLS + 1, CELLS + 1), k, "mask") < KEPT).to(x)
    size = ((CELLS + 1) * cell[0], (CELLS + 1) * cell[1])
    large = F.interpolate(open_[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    at = [draws.integers(side, (1,), k, f"shift {i}").to(x.device) for i, side in enumerate(cell)]
    rows = (at[0] + torch.arange(height, device=x.device))[:, :, None]
    columns = (at[1] + torch.arange(width, device=x.device))[:, None, :]
    return large[torch.arange(len(x), device=x.device)[:, None, None], rows, columns]


def _slope(oracle: Oracle, x: Tensor, c: Tensor) -> Tensor:
    return oracle.gradient(x, partial(_maps.own, c=c))[0]
