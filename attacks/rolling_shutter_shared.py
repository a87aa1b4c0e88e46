"""Rolling shutter with one signal for every image: learnt on some views, judged on others."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.threat import Norm, ThreatModel
from siegebench.types import Attack, Class, Count, Lesson, Positive, Share

from ._patterns import learn_pattern, pixels_in, wanted
from .rolling_shutter import render


@dataclass(frozen=True, kw_only=True)
class RollingShutterShared(Attack):
    """max_f E[loss(render(x, f, phase))] over training images x and phases: one flicker of a lamp for all images.

    Sayles, Hooda, Gupta, Chatterjee, Fernandes, "Invisible perturbations: physical adversarial examples exploiting the
    rolling shutter effect", CVPR 2021, arXiv 2011.13375. The lamp does not know what the camera will see. So the signal
    is learnt once, on training images; on rendered scenes these are other vehicles, directions of view and backgrounds
    than the attacked ones. `run` renders each image at a newly drawn phase and does not query the model.

    Random: the order of the training images, the initial signal, and phase and, with eps below 1, height of the lit
    band, which are drawn for each image and step during optimisation and once for each attacked image. Cost: `images`
    forward passes, then steps x batch forward and backward passes during optimisation; none for the attacked images.

    Differs from the paper: views of many objects instead of photographs of one, each under the whole light and without
    rotations or crops; untargeted by default; Adam instead of sign steps. With `optimise: false` the signal keeps its
    random initial values, as a control for flicker that nobody optimised.

    Attributes:
        optimise: optimise the signal; otherwise it stays random.
        light: fraction of the light that comes from the attacker's lamp, in linear light.
        exposure: exposure time of a row, in rows.
        colour: one signal per channel; otherwise one for all channels.
        target: target class if the threat has none; untargeted when left out.
        images: largest number of training images to optimise on.
        batch: images in each step, each at a phase of its own.
        steps: number of Adam steps.
        lr: learning rate of Adam.
        loss: cross-entropy or margin of the logits.
    """

    learns: ClassVar[bool] = True
    restricted: ClassVar[bool] = True
    aims: ClassVar[bool] = True
    norms: ClassVar[tuple[Norm, ...]] = ("l0",)

    optimise: bool = True
    light: Share = 0.7
    exposure: Count = 4
    colour: bool = True
    target: Class | None = None
    images: Count = 256
    batch: Count = 16
    steps: Count = 150
    lr: Positive = 0.05
    loss: Literal["ce", "margin"] = "ce"

    def can_aim(self) -> bool:
        return self.target is None and self.optimise  # its own target wins over the threat's

    def learn(self, oracle: Oracle, data: ImageSet, threat: ThreatModel, draws: Draws) -> Tensor:
        """The signal, [C or 1, rows + exposure - 1]."""
        channels, rows, _ = data.shape
        one = Draws(draws.seed, draws.ids.new_zeros(1))
        signal = one.uniform((channels if self.colour else 1, rows + self.exposure - 1), purpose="signal")[0]
        if not self.optimise:
            return signal
        return learn_pattern(
            signal, partial(self.lit, threat.eps), oracle, data, draws, images=self.images, batch=self.batch,
            steps=self.steps, lr=self.lr, loss=self.loss, target=wanted(self.target, oracle, threat),
        )  # fmt: skip

    def lit(self, eps: float, signal: Tensor, x: Tensor, draws: Draws, step: int) -> Tensor:
        """The images under the lamp, each at its own phase; with eps below 1, in a band of whole rows."""
        rows, columns = x.shape[2:]
        band = pixels_in(eps, x) // columns
        first = draws.integers(rows - band + 1, step=step, purpose="band")
        row = torch.arange(rows, device=x.device) - first[:, None]
        phase = draws.integers(signal.shape[1], step=step, purpose="phase")
        seen = render(x, signal.to(x.dtype).expand(len(x), -1, -1), phase, self.light, self.exposure).clamp(max=1)
        return torch.where(((row >= 0) & (row < band))[:, None, :, None], seen, x)

    def run(
        self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws, lesson: Lesson = None
    ) -> Tensor:
        wanted(self.target, oracle, threat)
        return self.lit(threat.eps, lesson, x, draws.child("rolling_shutter_shared"), 0)
