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


def carried(g: Tensor, x: Tensor) -> Tensor:
    """Motion-informed gradient G_t = g_t + a_t g_{t+1} + b_t g_{t+2}, [n, C, T, J].

    A change of frame t moves the later frames through the dynamics of x: a_t = dx_{t+1}/dx_t by an autoregression of
    order one, b_t = dx_{t+2}/dx_t by one of order two. After the last frame, g is zero.
    """
    first = autoregression(x, 1)[0]
    phi1, phi2 = autoregression(x, 2)

    def later(v: Tensor, k: int) -> Tensor:
        return F.pad(v[:, :, k:], (0, 0, 0, k))

    a = later(first, 1)
    b = later(phi1, 2) * a + later(phi2, 2)
    return g + a * later(g, 1) + b * later(g, 2)
