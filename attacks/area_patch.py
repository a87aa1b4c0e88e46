"""Area patch: a small texture, repeated over as many pixels as the budget allows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.threat import Norm, ThreatModel
from siegebench.types import Attack, Class, Count, Lesson, Positive, Share

from ._patterns import Degrees, around, learn_pattern, nearest, pixels_in, spread, turned, wanted, worn


@dataclass(frozen=True, kw_only=True)
class AreaPatch(Attack):
    """max_E E[loss(x with tile(E) in a square of area eps)] over training images x, phases, angles and brightness.

    Niederhut, "Area is all you need: repeatable elements make stronger adversarial attacks", 2023, arXiv 2306.07768:
    the effect of a patch depends mostly on its area. The element is optimised once on training images. `run` covers a
    square with it, at a position, phase, angle and brightness drawn for each image, and does not query the model.

    Random: the order of the training images, the initial element, and position, phase, angle and brightness, which are
    drawn for each image and step during optimisation and once for each attacked image. Cost: `images` forward passes,
    then steps x batch forward and backward passes during optimisation; none for the attacked images.

    Differs from the paper: the paper attacks person detectors; this is our adaptation to classifiers. No terms for
    smoothness or printable colours. lr is 0.05: with 0.01 and 80 steps at a tenth of the area, ResNet-20 still
    classified 40 of 64 images correctly instead of 34. With `optimise: false` the element keeps its random initial
    values; this control shows how much of the effect comes from the area alone.

    Attributes:
        optimise: optimise the element; otherwise it stays random.
        element: rows and columns of the element.
        target: target class if the threat has none; untargeted when left out.
        rotation: largest angle of the texture in degrees, in both directions.
        brightness: largest relative change of the brightness, in both directions.
        images: largest number of training images to optimise on.
        batch: images in each step.
        steps: number of Adam steps.
        lr: learning rate of Adam.
        loss: cross-entropy or margin of the logits.
    """

    learns: ClassVar[bool] = True
    restricted: ClassVar[bool] = True
    aims: ClassVar[bool] = True
    norms: ClassVar[tuple[Norm, ...]] = ("l0",)

    optimise: bool = True
    element: Count = 16
    target: Class | None = None
    rotation: Degrees = 20.0
    brightness: Share = 0.2
    images: Count = 512
    batch: Count = 16
    steps: Count = 250
    lr: Positive = 0.05
    loss: Literal["ce", "margin"] = "ce"

    def can_aim(self) -> bool:
        return self.target is None and self.optimise  # its own target wins over the threat's

    def learn(self, oracle: Oracle, data: ImageSet, threat: ThreatModel, draws: Draws) -> Tensor:
        """The element, [C, element, element]."""
        one = Draws(draws.seed, draws.ids.new_zeros(1))
        texture = one.uniform((data.shape[0], self.element, self.element), purpose="element")[0]
        if not self.optimise:
            return texture
        return learn_pattern(
            texture, partial(self.wear, threat.eps), oracle, data, draws, images=self.images, batch=self.batch,
            steps=self.steps, lr=self.lr, loss=self.loss, target=wanted(self.target, oracle, threat),
        )  # fmt: skip

    def wear(self, eps: float, texture: Tensor, x: Tensor, draws: Draws, step: int) -> Tensor:
        """The images with a square of repeated elements, each in its own pose."""
        half = math.sqrt(eps * x.shape[2] * x.shape[3]) / 2
        angle = spread(-self.rotation, self.rotation, x, draws, step, "angle")
        light = spread(1 - self.brightness, 1 + self.brightness, x, draws, step, "light")
        down, right = around(x, torch.full_like(angle, half), draws, step)
        mask = nearest(torch.maximum(down.abs(), right.abs()), pixels_in(eps, x))
        phase = self.element * draws.uniform((2, 1, 1), step, "phase").to(x.dtype)
        down, right = turned(down, right, angle)
        # pad by one row and column on each side, so that neighbouring elements join
        padded = F.pad(texture.to(x.dtype)[None], (1, 1, 1, 1), mode="circular").expand(len(x), -1, -1, -1)
        at = torch.stack([right + phase[:, 1], down + phase[:, 0]], dim=3) % self.element
        grid = 2 * (at + 1) / (self.element + 2) - 1
        tiled = F.grid_sample(padded, grid, mode="bilinear", padding_mode="border", align_corners=False)
        return worn(x, mask, tiled, light)

    def run(
        self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws, lesson: Lesson = None
    ) -> Tensor:
        wanted(self.target, oracle, threat)
        if pixels_in(threat.eps, x) == 0:
            return x.clone()
        return self.wear(threat.eps, lesson, x, draws.child("area_patch"), 0)
