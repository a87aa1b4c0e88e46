"""Planted cues: sprites whose colour, shape, scale, angle and texture each suffice to predict the class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from siegebench.data import IMAGE, ImageSet
from siegebench.draws import Draws, derive_seed
from siegebench.types import Count, DataSource, Share

SIDE, LEVELS = 32, 3
CUES = ("colour", "shape", "scale", "angle", "texture")
COLOURS = torch.tensor([[0.9, 0.2, 0.2], [0.2, 0.8, 0.2], [0.25, 0.35, 0.95]])
SCALES = torch.tensor([5.0, 7.0, 9.0])  # half the length of a sprite, in pixels
STRIPES = torch.tensor([0.0, 0.8, 1.6])  # radians a pixel
Cue = Literal["colour", "shape", "scale", "angle", "texture"]


@dataclass(frozen=True, kw_only=True)
class PlantedCues(DataSource):
    """Sprites on a dark ground. In training all five cues are at the same one of three levels, which is the label.

    The protocol WCST-ML of Scimeca, Oh, Chun, Poli, Yun, "Which Shortcut Cues Will DNNs Choose?", ICLR 2022, arXiv
    2110.03095. The splits `colour`, `shape`, `scale`, `angle` and `texture` have the same images, whose cues are at
    levels of their own, never all at the same one; their labels are the level of this one cue. A network that uses
    one cue is correct on the split of that cue, and at chance, 1/3, on the others. The measure `shortcut_bias` with
    `protocol: wcst` uses these splits.

    Shapes are an ellipse, a rectangle and a triangle, twice as long as wide; angles 0, 60 and 120 degrees; the texture
    stripes of low contrast on the ground. The position is random.

    Random: everything, from `seed`.

    Differs from the paper: rendered here, smoothly, in place of dSprites and UTKFace. Each image is drawn by itself;
    their diagonal images are drawn with replacement and then split, so that some are in both parts.

    Attributes:
        remedy: add training images that are labelled by this cue and whose other cues are random.
        remedied: number of those, as a share of the training set.
        count: number of training images; a quarter of it are test images, and images of each other split.
        seed: of all random numbers.
    """

    remedy: Cue | None = None
    remedied: Share = 0.5
    count: Count = 3000
    seed: int = 0

    def known_splits(self) -> tuple[str, ...]:
        return ("train", "test", *CUES)

    def load(self, split: str) -> ImageSet:
        if split not in self.known_splits():
            raise self.no_split("planted_cues", split)
        n = self.count if split == "train" else max(2 * LEVELS, self.count // 4)
        draws = Draws(derive_seed(self.seed, "apart" if split in CUES else split), torch.arange(n))
        levels = apart(draws)
        y = draws.ids % LEVELS
        if split in CUES:
            y = levels[:, CUES.index(split)]
        else:
            off = (draws.uniform(purpose="remedied") < self.remedied) & (split == "train" and self.remedy is not None)
            levels = torch.where(off[:, None], levels, y[:, None])
            if self.remedy is not None:
                y = torch.where(off, levels[:, CUES.index(self.remedy)], y)
        images = IMAGE.store(rendered(levels, draws))
        return ImageSet(images, y, draws.ids, LEVELS, f"planted_cues {split}", classes=("low", "middle", "high"))


def apart(draws: Draws) -> Tensor:
    """Levels of the five cues, not all equal, int64 [n, 5]."""
    levels = draws.integers(LEVELS, (len(CUES),), purpose="levels")
    same = (levels == levels[:, :1]).all(dim=1)
    which, step = (draws.integers(k, purpose=p) for k, p in ((len(CUES), "which"), (LEVELS - 1, "step")))
    moved = levels.scatter(1, which[:, None], (levels[:, :1] + 1 + step[:, None]) % LEVELS)
    return torch.where(same[:, None], moved, levels)


def rendered(levels: Tensor, draws: Draws) -> Tensor:
    """Images [n, 3, 32, 32] in [0, 1] of sprites with the cues at these levels [n, 5]."""
    colour, shape, scale, angle, texture = levels.unbind(dim=1)
    size = SCALES[scale].view(-1, 1, 1)
    centre = SIDE / 2 + (2 * draws.uniform((2,), purpose="place") - 1) * (SIDE / 2 - SCALES.max())
    at = torch.arange(SIDE) + 0.5
    u, v = torch.broadcast_tensors(at[None, None, :] - centre[:, 0].view(-1, 1, 1),
                                   at[None, :, None] - centre[:, 1].view(-1, 1, 1))  # fmt: skip
    turn = (angle * torch.pi / 3).view(-1, 1, 1)
    along, across = u * turn.cos() + v * turn.sin(), v * turn.cos() - u * turn.sin()
    a, b = along / size, across / (size / 2)
    # how far outside each shape, 0 on its edge
    outside = torch.stack([
        (a.square() + b.square()).sqrt() - 1,
        torch.maximum(a.abs(), b.abs()) - 0.85,
        torch.maximum(-a - 0.9, (a + 2 * b.abs() - 1) / 2),
    ], dim=1)  # fmt: skip
    outside = outside.gather(1, shape.view(-1, 1, 1, 1).expand(-1, 1, SIDE, SIDE))[:, 0]
    inside = (0.5 - outside * size / 2).clamp(0, 1)[:, None]
    phase = 2 * torch.pi * draws.uniform(purpose="phase").view(-1, 1, 1)
    ground = 0.15 + 0.06 * (STRIPES[texture].view(-1, 1, 1) * at[None, None, :] + phase).sin().expand(-1, SIDE, SIDE)
    x = ground[:, None] * (1 - inside) + COLOURS[colour].view(-1, 3, 1, 1) * inside
    return (x + 0.02 * draws.normal((3, SIDE, SIDE), purpose="noise")).clamp(0, 1)
