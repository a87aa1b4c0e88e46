"""Shared by universal patterns: pixel coordinates under a pose, pasting a pattern, and optimising it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from siegebench import ops
from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from siegebench.oracle import Oracle
from siegebench.threat import ThreatModel, parse_number

Degrees = Annotated[float, BeforeValidator(parse_number), Field(ge=0, le=180)]
Wear = Callable[[Tensor, Tensor, Draws, int], Tensor]  # (pattern, images, draws, step) to images with the pattern


def pixels_in(fraction: float, x: Tensor) -> int:
    """Number of pixels in this fraction of an image, rounded down."""
    return math.floor(fraction * x.shape[2] * x.shape[3] + 1e-6)


def spread(low: float, high: float, x: Tensor, draws: Draws, step: int, purpose: str) -> Tensor:
    """One uniform number between two bounds per sample, [n]."""
    return low + (high - low) * draws.uniform((), step, purpose).to(x.dtype)


def around(x: Tensor, reach: Tensor, draws: Draws, step: int) -> tuple[Tensor, Tensor]:
    """(down, right), [n, H, W]: pixel coordinates relative to a random centre at least `reach` [n] from the edges.

    If there is no such centre, the middle of the image is used.
    """
    out = []
    for d, name in zip(x.shape[2:], ("row", "column"), strict=True):
        centre = d / 2 + (d - 2 * reach).clamp(min=0) * (draws.uniform((), step, name).to(x.dtype) - 0.5)
        out.append(torch.arange(d, device=x.device) + 0.5 - centre[:, None])
    down, right = out
    return down[:, :, None].expand(-1, -1, x.shape[3]), right[:, None, :].expand(-1, x.shape[2], -1)


def turned(down: Tensor, right: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """The coordinates in a system rotated by an angle [n] in degrees."""
    cos, sin = (ops.over(f(angle.deg2rad()), down) for f in (torch.cos, torch.sin))
    return cos * down - sin * right, sin * down + cos * right


def nearest(distance: Tensor, count: int | Tensor) -> Tensor:
    """Mask of the `count` pixels of smallest distance [n, H, W], bool [n, 1, H, W]; count may be per sample, [n]."""
    rank = distance.flatten(1).argsort(dim=1, stable=True).argsort(dim=1)
    count = torch.as_tensor(count, device=rank.device).expand(len(rank))
    return (rank < count[:, None]).view(len(rank), 1, *distance.shape[1:])


def worn(x: Tensor, mask: Tensor, texture: Tensor, light: Tensor) -> Tensor:
    """The images with a texture [n, C, H, W], scaled by a brightness [n], inside the mask."""
    return torch.where(mask, (ops.over(light, texture) * texture).clamp(0, 1), x)


def wanted(own: int | None, oracle: Oracle, threat: ThreatModel) -> int | None:
    """The target class of one pattern for all images: the threat's, or the attack's own if the threat has none.

    Raises:
        NotApplicable: when the threat has a different target for each image.
    """
    if isinstance(threat.target, int):
        return threat.target
    if threat.target is None and oracle.goals is None:
        return own
    asked = threat.target or "a class for each image"
    raise NotApplicable(f"one pattern for all images aims at one class, a number; the threat's target is {asked}")


def climbed(loss: str, y: Tensor, target: int | None, classes: int) -> Callable[[Tensor], Tensor]:
    """The function of the logits to maximise: away from the labels y, or towards a target.

    Raises:
        NotApplicable: when the model has no such class.
    """
    if target is None:
        return ops.aimed(loss, y, None)
    if target >= classes:
        raise NotApplicable(f"target {target} is no class of this model, which has {classes}")
    return ops.aimed(loss, y, torch.full_like(y, target))


def learn_pattern(
    start: Tensor,
    wear: Wear,
    oracle: Oracle,
    data: ImageSet,
    draws: Draws,
    *,
    images: int,
    batch: int,
    steps: int,
    lr: float,
    loss: str,
    target: int | None,
) -> Tensor:
    """Optimise a pattern in [0, 1] with Adam over random training images and poses; one batch of both per step.

    Untargeted: the loss of the labels that the model predicts for the clean images is maximised. With a target: the
    loss of the target class is minimised. Cost: one forward pass per image, then one forward and one backward pass per
    image of each batch.
    """
    order = draws.order("images").cpu()
    if target is not None:
        order = order[data.labels[order] != target]
    order = order[:images]

    def shown(rows: Tensor) -> Tensor:
        return data.pixels(rows, oracle.dtype).to(draws.ids.device)

    own = torch.cat([oracle[rows].labels(shown(rows)) for rows in order.split(batch)])
    pattern = start.to(oracle.dtype).requires_grad_(True)
    adam = torch.optim.Adam([pattern], lr=lr)
    for step in range(steps):
        at = (torch.arange(batch) + step * batch) % len(order)
        rows = order[at]
        with torch.enable_grad():
            x = wear(pattern, shown(rows), draws[rows], step)
        g, _, _ = oracle[rows].gradient(x.detach(), climbed(loss, own[at], target, oracle.num_classes))
        (slope,) = torch.autograd.grad(x, pattern, g)
        pattern.grad = -slope / batch
        adam.step()
        with torch.no_grad():
            pattern.clamp_(0, 1)
    return pattern.detach()
