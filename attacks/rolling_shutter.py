"""Rolling shutter: a lamp that flickers faster than the eye sees causes stripes in a camera that reads row by row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from siegebench import ops
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.threat import Norm, ThreatModel
from siegebench.types import Attack, Class, Count, Positive, Share

from ._patterns import climbed, pixels_in

GAMMA = 2.2
DARK = 1e-6  # keeps the root away from zero, where its gradient is infinite


def exposed(signal: Tensor, phase: Tensor, rows: int, exposure: int) -> Tensor:
    """Light on each row: the mean of `exposure` neighbours of a signal [n, c, L] that is delayed by `phase` [n].

    Returns [n, c, rows].
    """
    n, c, period = signal.shape
    device = signal.device
    moments = torch.arange(rows, device=device)[:, None] + torch.arange(exposure, device=device)
    at = ((moments.flatten() - phase[:, None]) % period)[:, None].expand(n, c, -1)
    return signal.gather(2, at).view(n, c, rows, exposure).mean(dim=3)


def render(x: Tensor, signal: Tensor, phase: Tensor, light: float, exposure: int) -> Tensor:
    """Camera image of a scene x: in linear light, 1 - light is constant and `light` is modulated by the signal."""
    gain = (1 - light) + light * exposed(signal, phase, x.shape[2], exposure)[..., None]
    return (x**GAMMA * gain * (1 - DARK) + DARK) ** (1 / GAMMA)


@dataclass(frozen=True, kw_only=True)
class RollingShutter(Attack):
    """f <- clip(f + step sign(sum over phases of grad loss(render(x, f, phase)))), stripes from a flickering lamp.

    Sayles, Hooda, Gupta, Chatterjee, Fernandes, "Invisible perturbations: physical adversarial examples exploiting the
    rolling shutter effect", CVPR 2021, arXiv 2011.13375. Lamp and camera are not synchronised: the returned image is
    rendered at a newly drawn phase.

    Random: the initial signal, the phases of each step and the final phase, drawn for each image. Cost per sample:
    steps x phases forward and backward passes. There is no early stop, because one misclassified phase says nothing
    about the next.

    Differs from the paper: optimised for one image, untargeted by default, instead of for pairs of photographs with and
    without the lamp, with rotations and crops. x is the scene under full light. The last signal is used. All rows
    change, which needs eps = 1. With a smaller eps the lamp lights a band of whole rows at a height drawn for each
    image, and the other rows do not change.

    Attributes:
        light: fraction of the light that comes from the attacker's lamp, in linear light.
        exposure: exposure time of a row, in rows; 4 of 252 in the authors' code. More rows blur the stripes.
        colour: one signal per channel; otherwise one for all channels.
        steps: number of gradient steps.
        step: step size.
        phases: number of phases in each step.
        target: target class if the threat has none; untargeted when left out.
        loss: cross-entropy or margin of the logits.
    """

    restricted: ClassVar[bool] = True
    aims: ClassVar[bool] = True
    norms: ClassVar[tuple[Norm, ...]] = ("l0",)

    light: Share = 0.7
    exposure: Count = 4
    colour: bool = True
    steps: Count = 40
    step: Positive = 0.05
    phases: Count = 4
    target: Class | None = None
    loss: Literal["ce", "margin"] = "ce"

    def can_aim(self) -> bool:
        return self.target is None  # an attack with its own target ignores that of the threat

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
        n, channels, rows, columns = x.shape
        period, k = rows + self.exposure - 1, self.phases
        lit = pixels_in(threat.eps, x) // columns
        if lit == 0 or n == 0:
            return x.clone()
        first = draws.integers(rows - lit + 1, purpose="band")
        row = torch.arange(rows, device=x.device) - first[:, None]
        band = ((row >= 0) & (row < lit))[:, None, :, None]
        f = draws.uniform((channels if self.colour else 1, period), purpose="signal").to(x.dtype)
        x_k, band_k, y_k = (v.repeat_interleave(k, 0) for v in (x, band, y))
        if oracle.goal is None:
            loss = climbed(self.loss, y_k, self.target, oracle.num_classes)
        else:
            loss = ops.aimed(self.loss, y_k, oracle.repeat(k).goal)
        for t in range(self.steps):
            phase = draws.integers(period, (k,), t, "phase").flatten()
            leaf = f.clone().requires_grad_(True)
            with torch.enable_grad():
                seen = render(x_k, leaf.repeat_interleave(k, 0), phase, self.light, self.exposure)
                seen = torch.where(band_k, seen, x_k)
            g, _, _ = oracle.repeat(k).gradient(seen.detach(), loss)
            (slope,) = torch.autograd.grad(seen, leaf, g)
            f = (f + self.step * slope.sign()).clamp(0, 1)
        phase = draws.integers(period, step=self.steps, purpose="phase")
        return torch.where(band, render(x, f, phase, self.light, self.exposure).clamp(max=1), x)
