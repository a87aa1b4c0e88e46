"""Adversarial patch: one universal patch that changes the prediction when pasted onto any image in any pose."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench import ops
from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.threat import Norm, ThreatModel
from siegebench.types import Attack, Class, Count, Lesson, Positive, Share

from ._patterns import Degrees, around, learn_pattern, nearest, pixels_in, spread, turned, wanted, worn


@dataclass(frozen=True, kw_only=True)
class AdversarialPatch(Attack):
    """max_P E[loss(A(P, x, position, angle, scale, brightness))] over training images x and poses; pasted onto others.

    Brown, Mane, Roy, Abadi, Gilmer, "Adversarial patch", 2017, arXiv 1712.09665. The pattern is optimised once on
    training images. `run` pastes it in a random pose per image and does not query the model.

    Random: the order of the training images, the initial pattern, and position, angle, scale and brightness, which are
    drawn for each image and step during optimisation and once for each attacked image. Cost: `images` forward passes,
    then steps x batch forward and backward passes during optimisation; none for the attacked images.

    Differs from the paper: untargeted by default, away from the labels that the model predicts for the clean images.
    The number of changed pixels is exact, at most eps of all pixels at scale 1, so that a rotated patch covers no more.
    The patch lies within the image. Adam, with pixels clipped to [0, 1].

    Attributes:
        target: target class if the threat has none; untargeted when left out.
        shape: shape of the patch.
        resolution: rows and columns of the pattern.
        rotation: largest angle in degrees, in both directions.
        smallest: smallest size, as a fraction of the size that eps allows.
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

    target: Class | None = None
    shape: Literal["circle", "square"] = "circle"
    resolution: Count = 32
    rotation: Degrees = 20.0
    smallest: Share = 0.7
    brightness: Share = 0.2
    images: Count = 512
    batch: Count = 16
    steps: Count = 250
    lr: Positive = 0.05
    loss: Literal["ce", "margin"] = "ce"

    def can_aim(self) -> bool:
        return self.target is None  # an attack with its own target ignores that of the threat

    def learn(self, oracle: Oracle, data: ImageSet, threat: ThreatModel, draws: Draws) -> Tensor:
        """The pattern, [C, resolution, resolution]."""
        one = Draws(draws.seed, draws.ids.new_zeros(1))
        start = one.uniform((data.shape[0], self.resolution, self.resolution), purpose="picture")[0]
        return learn_pattern(
            start, partial(self.wear, threat.eps), oracle, data, draws, images=self.images, batch=self.batch,
            steps=self.steps, lr=self.lr, loss=self.loss, target=wanted(self.target, oracle, threat),
        )  # fmt: skip

    def wear(self, eps: float, picture: Tensor, x: Tensor, draws: Draws, step: int) -> Tensor:
        """The images with the patch pasted on, each in its own pose."""
        area = eps * x.shape[2] * x.shape[3]
        scale = spread(self.smallest, 1, x, draws, step, "scale")
        angle = spread(-self.rotation, self.rotation, x, draws, step, "angle")
        light = spread(1 - self.brightness, 1 + self.brightness, x, draws, step, "light")
        half = (scale * math.sqrt(area / (math.pi if self.shape == "circle" else 4))).clamp(min=0.5)
        turn = angle.deg2rad()
        reach = half if self.shape == "circle" else half * (turn.cos().abs() + turn.sin().abs())
        down, right = turned(*around(x, reach, draws, step), angle)
        down, right = down / ops.over(half, down), right / ops.over(half, right)  # -1 to 1 within the pattern
        far = torch.maximum(down.abs(), right.abs()) if self.shape == "square" else down.square() + right.square()
        mask = nearest(far, (scale.square() * area + 1e-6).floor())
        grid = torch.stack([right, down], dim=3)
        source = picture.to(x.dtype).expand(len(x), -1, -1, -1)
        texture = F.grid_sample(source, grid, mode="bilinear", padding_mode="border", align_corners=False)
        return worn(x, mask, texture, light)

    def run(
        self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws, lesson: Lesson = None
    ) -> Tensor:
        wanted(self.target, oracle, threat)
        if pixels_in(threat.eps, x) == 0:
            return x.clone()
        return self.wear(threat.eps, lesson, x, draws.child("adversarial_patch"), 0)
