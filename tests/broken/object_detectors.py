"""Object detectors that keep their contract, and one for each clause that breaks it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from siegebench.object_detector import Found, ObjectDetector, logits
from siegebench.types import ObjectDetectorSource

CELL = 8  # pixels


class Cells(ObjectDetector):
    """An honest detector, to be broken below: each cell of 8 x 8 pixels is a box, scored by a linear map."""

    def __init__(self):
        super().__init__()
        self.score = nn.Conv2d(3, 1, CELL, CELL)

    def find(self, x):
        z = self.score(x)
        rows, columns = (CELL * torch.arange(k, dtype=x.dtype) for k in z.shape[2:])
        top, left = torch.meshgrid(rows, columns, indexing="ij")
        boxes = torch.stack([left, top, left + CELL, top + CELL], dim=2).flatten(0, 1)
        return Found(boxes.expand(len(x), -1, -1), z.flatten(1).sigmoid())

    def fresh(self, seed):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return type(self)().eval()


class UpsideDown(Cells):
    def find(self, x):
        found = super().find(x)
        return Found(found.boxes.flip(2), found.scores)


class ByItsMeanBox(Cells):
    def forward(self, x, draws=None):
        super().forward(x)
        return logits(self.find(x).scores.mean(dim=1))


class ByItsNeighbours(Cells):
    def find(self, x):
        return super().find(x - x.mean(dim=0))


class InSteps(Cells):
    def find(self, x):
        found = super().find(x)
        return Found(found.boxes, (found.scores * 255).round() / 255)


class Forgetful(Cells):
    def fresh(self, seed):
        return type(self)().eval()


@dataclass(frozen=True, kw_only=True)
class Honest(ObjectDetectorSource):
    model: ClassVar[type[ObjectDetector]] = Cells

    def detector(self, *, size):
        return self.model().eval()


class InTrainMode(Honest):
    def detector(self, *, size):
        return Cells().train()


def source(made: type[ObjectDetector]) -> Honest:
    return type(made.__name__, (Honest,), {"model": made})()


HONEST = [("object_detector", Honest())]
BROKEN = [
    ("object_detector", InTrainMode(), "builds an object detector", "not in eval mode"),
    ("object_detector", source(UpsideDown), "finds boxes with scores", "not left, top, right, bottom"),
    ("object_detector", source(ByItsMeanBox), "answers by the best box", "not those of the best score"),
    ("object_detector", source(ByItsNeighbours), "answers for an image alone as in a batch", "other logits"),
    ("object_detector", source(InSteps), "lets gradients reach the image", "is zero for 3 of 3 images"),
    ("object_detector", source(Forgetful), "builds anew from a seed", "twice gives different weights"),
]
