"""The dynamics of joints: a time-varying autoregression of every coordinate, and gradients carried through it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LIMIT = 2.0  # of a coefficient
RIDGE = 1e-4  # relative to the mean square of the coordinate


def autoregression(x: Tensor, order: int, radius: int = 4) -> Tensor:
    """Coefficients phi of x_t = sum_k phi_k,t x_{t-k}, fitted to the frames t - radius .. t + radius by least squares.

    The nearest frames stand in for those beyond the ends. A coordinate that does not move gets coefficients that add up
    to one.

    Args:
        x: [n, C, T, J], T > order.
        order: number of earlier frames.

    Returns:
        [order, n, C, T, J]; zero for the first frames, which have no `order` earlier ones.
    """
    frames, window = x.shape[2], 2 * radius + 1
    now = x[:, :, order:]
    before = torch.stack([x[:, :, order - k : frames - k] for k in range(1, order + 1)])

    def local(v: Tensor) -> Tensor:
        """Sums over the window around every frame."""
        rows = F.pad(v.transpose(-1, -2).reshape(1, -1, v.shape[-2]), (radius, radius), mode="replicate")
        return F.avg_pool1d(rows, window, 1).view(*v.shape[:-2], v.shape[-1], -1).transpose(-1, -2) * window

    gram = torch.stack([torch.stack([local(a * b) for b in before], dim=-1) for a in before], dim=-1)
    right = torch.stack([local(a * now) for a in before], dim=-1)
    ridge = RIDGE * local(now.square())[..., None] + 1e-12
    eye = torch.eye(order, dtype=x.dtype, device=x.device)
    phi = torch.linalg.solve(gram + ridge[..., None] * eye, right).clamp(-LIMIT, LIMIT)
    return F.pad(phi.movedim(-1, 0), (0, 0, order, 0))


def later(v: Tensor, k: int) -> Tensor:
    """v [n, C, T, J] of the frame k frames on; zero after the last frame."""
    return F.pad(v[:, :, k:], (0, 0, 0, k))


def dynamics(x: Tensor) -> tuple[Tensor, Tensor]:
    """How the next frames of a motion follow a change of frame t: (a_t = dx_{t+1}/dx_t, b_t = dx_{t+2}/dx_t).

    a is the coefficient of an autoregression of order one, b that of two steps in one of order two.
    """
    phi1, phi2 = autoregression(x, 2)
    a = later(autoregression(x, 1)[0], 1)
    return a, later(phi1, 2) * a + later(phi2, 2)


def carried(g: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Motion-informed gradient G_t = g_t + a_t g_{t+1} + b_t g_{t+2}, [n, C, T, J]; g is zero after the last frame."""
    return g + a * later(g, 1) + b * later(g, 2)
