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


def size(delta: Tensor, norm: str) -> Tensor:
    """Norm of each row: linf, l2, l1, or l0, the fraction of pixels [n, C, H, W] that are not zero; shape [n]."""
    rows = flat(delta)
    if norm == "l0":
        return (delta != 0).any(dim=1).flatten(1).to(_real(delta)).mean(dim=1)
    if norm == "linf":
        return rows.abs().amax(dim=1)
    return rows.norm(p=2 if norm == "l2" else 1, dim=1)


def project_ball(delta: Tensor, norm: str, eps: float | Tensor) -> Tensor:
    """Nearest point (in L2) of the eps-ball for each row; eps may be a number or a tensor [n]."""
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
    # L1: soft-threshold at the theta that makes the norm eps (Duchi et al. 2008)
    rows = flat(delta).abs()
    sorted_rows = rows.sort(dim=1, descending=True).values
    excess = sorted_rows.cumsum(dim=1) - bound[:, None]
    rank = torch.arange(1, rows.shape[1] + 1, device=rows.device)
    active = (sorted_rows * rank > excess).sum(dim=1).clamp(min=1)
    theta = excess.gather(1, active[:, None] - 1).squeeze(1) / active
    theta = torch.where(rows.sum(dim=1) > bound, theta, torch.zeros_like(theta))
    return delta.sign() * (delta.abs() - over(theta, delta)).clamp(min=0)


def project(x_adv: Tensor, x: Tensor, norm: str, eps: float | Tensor) -> Tensor:
    """Project onto the eps-ball around x, then onto [0, 1]. Clipping cannot lengthen x_adv - x: x is in [0, 1]."""
    return (x + project_ball(x_adv - x, norm, eps)).clamp(0, 1)


def normalise(g: Tensor, norm: str) -> Tensor:
    """Steepest-ascent direction of each row: sign for linf, unit length for l2, the largest entry for l1."""
    if norm == "linf":
        return g.sign()
    if norm == "l2":
        return g / over(size(g, "l2").clamp(min=1e-12), g)
    rows = flat(g)
    top = rows.abs().argmax(dim=1, keepdim=True)
    return torch.zeros_like(rows).scatter(1, top, rows.gather(1, top).sign()).view_as(g)


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
