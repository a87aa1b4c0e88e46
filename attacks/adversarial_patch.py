"""Adversarial patch: one picture that, stuck onto any image in any pose, changes what the network sees."""

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
    """max_P E[loss(A(P, x, place, angle, scale, light))] over training images x and poses, then stuck onto others.

    Brown, Mane, Roy, Abadi, Gilmer, "Adversarial patch", 2017, arXiv 1712.09665. The pattern is learnt once on training
    images; `run` pastes it in a pose drawn for each image and asks the model nothing.

    Random: the order of the training images, the picture at the start, and place, angle, scale and brightness, for each
    image and step while it learns and once for each image that is attacked. Cost: `images` forwards, steps x batch
    forwards and backwards while it learns; nothing for the images attacked.

    Differs from the paper: untargeted by default, away from the labels that the model gives to the clean images. The
    pixels that change are counted out, at most eps of all at scale 1, so that a turned patch covers no more; the
    picture lies within the image. Adam, pixels clipped to [0, 1].

    Attributes:
        target: the class that is wanted where the threat names none; any wrong one when left out.
        shape: of the patch.
        resolution: rows and columns of the picture.
        rotation: largest angle in degrees, both ways.
        smallest: smallest size, as a share of the size that eps allows.
        brightness: how far the light may change, both ways, as a share.
        images: training images that it learns on, at most.
        batch: of them at each step.
        steps: of Adam.
        lr: its learning rate.
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
        return self.target is None  # with a class of its own it aims there, whatever the threat says

    def learn(self, oracle: Oracle, data: ImageSet, threat: ThreatModel, draws: Draws) -> Tensor:
        """The picture, [C, resolution, resolution]."""
        one = Draws(draws.seed, draws.ids.new_zeros(1))
        start = one.uniform((data.shape[0], self.resolution, self.resolution), purpose="picture")[0]
        return learn_pattern(
            start, partial(self.wear, threat.eps), oracle, data, draws, images=self.images, batch=self.batch,
            steps=self.steps, lr=self.lr, loss=self.loss, target=wanted(self.target, oracle, threat),
        )  # fmt: skip

    def wear(self, eps: float, picture: Tensor, x: Tensor, draws: Draws, step: int) -> Tensor:
        """The images with the picture stuck on, each in a pose of its own."""
        area = eps * x.shape[2] * x.shape[3]
        scale = spread(self.smallest, 1, x, draws, step, "scale")
        angle = spread(-self.rotation, self.rotation, x, draws, step, "angle")
        light = spread(1 - self.brightness, 1 + self.brightness, x, draws, step, "light")
        half = (scale * math.sqrt(area / (math.pi if self.shape == "circle" else 4))).clamp(min=0.5)
        turn = angle.deg2rad()
        reach = half if self.shape == "circle" else half * (turn.cos().abs() + turn.sin().abs())
        down, right = turned(*around(x, reach, draws, step), angle)
        down, right = down / ops.over(half, down), right / ops.over(half, right)  # -1 to 1 within the picture
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
