"""Numerics shared by attacks: sizes, projections, losses. All are per sample, without a loop over images."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench.errors import NotApplicable

DUAL = {"linf": "l1", "l2": "l2", "l1": "linf"}  # the dual norm of each norm, for gradients


def flat(x: Tensor) -> Tensor:
    """[n, ...] to [n, d]."""
    return x.reshape(len(x), math.prod(x.shape[1:]))  # not -1, which is undefined for an empty batch


def over(v: Tensor, like: Tensor) -> Tensor:
    """[n] to [n, 1, 1, ...], to broadcast over the rows of `like`."""
    return v.view(-1, *[1] * (like.dim() - 1))


def _real(delta: Tensor) -> torch.dtype:
    """The type of a norm: that of delta, and float32 for integers."""
    return delta.dtype if delta.is_floating_point() else torch.float32


def precision(x: Tensor, dtype: torch.dtype) -> torch.dtype:
    """The type in which a model gets x: this one, and for integers, such as code points, their own."""
    return dtype if x.is_floating_point() else x.dtype


def share_changed(x_adv: Tensor, x: Tensor) -> Tensor:
    """How many places of texts [n, 1, 1, L] differ, as a fraction of the characters of x; [n], at most 1."""
    changed, own = (x_adv != x).flatten(1).sum(dim=1), (x != 0).flatten(1).sum(dim=1)
    return (changed / own.clamp(min=1)).clamp(max=1)


def size(delta: Tensor, norm: str) -> Tensor:
    """Norm of each row: linf, l2, l1, or l0, the fraction of pixels [n, C, H, W] that are not zero; shape [n]."""
    rows = flat(delta)
    if norm == "l0":
        return (delta != 0).any(dim=1).flatten(1).to(_real(delta)).mean(dim=1)
    if norm == "linf":
        return rows.abs().amax(dim=1)
    if norm == "l1":  # a long sum, whose rounding errors float32 would keep
        return rows.abs().sum(dim=1, dtype=torch.float64).to(_real(delta))
    return rows.norm(p=2, dim=1)


def project_ball(delta: Tensor, norm: str, eps: float | Tensor) -> Tensor:
    """Nearest point (in L2) of the eps-ball for each row; eps may be a number or a tensor [n]."""
    if norm == "linf" and not isinstance(eps, Tensor):
        return delta.clamp(-eps, eps)
    bound = torch.as_tensor(eps, dtype=_real(delta), device=delta.device).expand(len(delta))
    if norm == "linf":
        limit = over(bound, delta)
        return torch.minimum(torch.maximum(delta, -limit), limit)
    if norm == "l2":
        return delta * over((bound / size(delta, "l2").clamp(min=1e-12)).clamp(max=1), delta)
    if norm == "l0":  # keep the pixels that change most
        pixels = delta.square().sum(dim=1).flatten(1)
        kept = (bound * pixels.shape[1] + 1e-6).floor()  # 1e-6: a fraction such as 1/9 of 9 pixels is one pixel
        rank = pixels.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        return delta * (rank < kept[:, None]).view(len(delta), 1, *delta.shape[2:])
    return _shrunk(delta, bound, None)


def _shrunk(delta: Tensor, bound: Tensor, room: Tensor | None) -> Tensor:
    """Nearest point (in L2) with L1 norm at most `bound` and absolute values at most `room` (no limit if None).

    Every absolute value a becomes clamp(a - t, 0, room) with one t >= 0 per row (Duchi et al. 2008; with the box, Croce
    & Hein 2021). The L1 norm is piecewise linear in t, with corners at a and a - room; t is found by sorting them. In
    float64, because the norm is a sum over all pixels.
    """
    size_ = flat(delta).abs().double()
    most = torch.full_like(size_, torch.inf) if room is None else flat(room).double()
    corner = size_ if room is None else torch.cat([size_, size_ - most], dim=1)
    corner, order = corner.sort(dim=1, descending=True)
    slope = torch.where(order < size_.shape[1], 1.0, -1.0).double()
    value, slope = (slope * corner).cumsum(dim=1), slope.cumsum(dim=1)
    norm = value - slope * corner  # the L1 norm when t is this corner; increases along the row
    at = (norm <= bound[:, None]).sum(dim=1, keepdim=True).clamp(min=1) - 1
    t = (value.gather(1, at) - bound[:, None]) / slope.gather(1, at).clamp(min=1)
    free = torch.minimum(size_, most)
    t = torch.where(free.sum(dim=1, keepdim=True) > bound[:, None], t.clamp(min=0), torch.zeros_like(t))
    out = torch.minimum((size_ - t).clamp(min=0), most)
    out = out * (bound[:, None] / out.sum(dim=1, keepdim=True).clamp(min=1e-300)).clamp(max=1)
    return delta.sign() * out.to(_real(delta)).view_as(delta)


def project(x_adv: Tensor, x: Tensor, norm: str, eps: float | Tensor) -> Tensor:
    """Project onto the eps-ball around x, then onto [0, 1]. Clipping cannot lengthen x_adv - x: x is in [0, 1]."""
    delta = project_ball(x_adv - x, norm, eps)
    return _moved(x, delta) if norm == "l1" else (x + delta).clamp(0, 1)


def project_l1(x_adv: Tensor, x: Tensor, eps: float | Tensor) -> Tensor:
    """Nearest point (in L2) of the intersection of the L1 ball around x and [0, 1].

    `project` clips after the ball, which wastes the part of the L1 norm that is clipped (Croce & Hein, "Mind the box",
    ICML 2021, arXiv 2103.01208). eps may be a number or a tensor [n].
    """
    delta = x_adv - x
    bound = torch.as_tensor(eps, dtype=torch.float64, device=x.device).expand(len(x))
    return _moved(x, _shrunk(delta, bound, torch.where(delta > 0, 1 - x, x)))


def _moved(x: Tensor, delta: Tensor) -> Tensor:
    """x + delta in [0, 1], rounded towards x: rounding errors of many pixels would add up in the L1 norm."""
    z = (x + delta).clamp(0, 1)
    return torch.where((z - x).abs() > delta.abs(), torch.nextafter(z, x), z)


def normalise(g: Tensor, norm: str) -> Tensor:
    """Steepest-ascent direction of each row: sign for linf, unit length for l2, the largest entry for l1."""
    if norm == "linf":
        return g.sign()
    if norm == "l2":
        return g / over(size(g, "l2").clamp(min=1e-12), g)
    rows = flat(g)
    top = rows.abs().argmax(dim=1, keepdim=True)
    return torch.zeros_like(rows).scatter(1, top, rows.gather(1, top).sign()).view_as(g)


def ssim(x: Tensor, z: Tensor) -> Tensor:
    """Structural similarity of images x and z in [0, 1], [n, C, H, W]: one number per pair, [n]; 1 for equal images.

    Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment: from error visibility to structural similarity", IEEE
    Transactions on Image Processing 2004. Gaussian window of side 11 and sigma 1.5 (the largest odd side that fits, for
    smaller images), K1 = 0.01, K2 = 0.03. The mean over all positions where the window fits, and over channels.
    """
    channels, height, width = x.shape[1:]
    side = min(11, height, width)
    side -= side % 2 == 0
    at = torch.arange(side, device=x.device, dtype=x.dtype) - side // 2
    line = torch.exp(-(at**2) / (2 * 1.5**2))
    line = (line / line.sum()).expand(channels, 1, side)

    def mean(v: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(v, line[..., None], groups=channels), line[:, :, None], groups=channels)

    a, b = mean(x), mean(z)
    shared, spread = mean(x * z) - a * b, mean(x * x) - a * a + mean(z * z) - b * b
    c1, c2 = 0.01**2, 0.03**2
    return ((2 * a * b + c1) * (2 * shared + c2) / ((a * a + b * b + c1) * (spread + c2))).flatten(1).mean(dim=1)


def cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    """Per sample, [n]."""
    return F.cross_entropy(z, y, reduction="none")


def margin(z: Tensor, y: Tensor) -> Tensor:
    """max_{j != y} z_j - z_y, [n]; positive means misclassified."""
    own = z.gather(1, y[:, None]).squeeze(1)
    # masked with -inf, never with 0: logits may all be negative
    other = z.scatter(1, y[:, None], float("-inf")).amax(dim=1)
    return other - own


def dlr(z: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio (Croce & Hein 2020), [n]; invariant to shift and scale. Needs 3 classes."""
    ordered = z.sort(dim=1, descending=True).values
    return margin(z, y) / (ordered[:, 0] - ordered[:, 2] + 1e-12)


def targeted_dlr(z: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Targeted difference of logits ratio, [n].

    Raises:
        NotApplicable: with fewer than 4 classes.
    """
    if z.shape[1] < 4:
        raise NotApplicable(f"the targeted difference of logits ratio needs 4 classes, the model has {z.shape[1]}")
    ordered = z.sort(dim=1, descending=True).values
    own, wanted = z.gather(1, y[:, None]).squeeze(1), z.gather(1, target[:, None]).squeeze(1)
    return (wanted - own) / (ordered[:, 0] - (ordered[:, 2] + ordered[:, 3]) / 2 + 1e-12)


LOSSES = {"ce": cross_entropy, "margin": margin, "dlr": dlr}  # all increase towards misclassification
CLASSES = {"ce": 2, "margin": 2, "dlr": 3, "targeted_dlr": 4}  # minimum number of classes of each loss


def check_classes(loss: str, classes: int) -> None:
    """Refuse a loss that is not defined for so few classes.

    Raises:
        NotApplicable: naming the loss and the number of classes that it needs.
    """
    if classes < CLASSES[loss]:
        raise NotApplicable(f"loss {loss} needs {CLASSES[loss]} classes, the model has {classes}")


def _towards_dlr(z: Tensor, goal: Tensor) -> Tensor:
    rival = z.scatter(1, goal[:, None], float("-inf")).argmax(dim=1)
    return targeted_dlr(z, rival, goal)


TOWARDS: dict[str, Callable[..., Tensor]] = {  # all ascend towards the goal
    "ce": lambda z, goal: -cross_entropy(z, goal),
    "margin": lambda z, goal: -margin(z, goal),
    "dlr": _towards_dlr,
    "targeted_dlr": _towards_dlr,
}


def aimed(loss: str, y: Tensor, goal: Tensor | None) -> Callable[[Tensor], Tensor]:
    """What an attack climbs, of logits: the loss away from y, or towards the goal (`oracle.goal`) if there is one."""
    return partial(LOSSES[loss], y=y) if goal is None else partial(TOWARDS[loss], goal=goal)


def gain(z: Tensor, y: Tensor, goal: Tensor | None) -> Tensor:
    """Margin of success, [n]; positive means misclassified, or classified as the goal where there is one."""
    return margin(z, y) if goal is None else -margin(z, goal)


def hit(label: Tensor, y: Tensor, goal: Tensor | None) -> Tensor:
    """Whether top-1 labels are a success, bool [n]: not y, or the goal where there is one."""
    return label != y if goal is None else label == goal
