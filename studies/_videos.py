"""Videos made of real images: a traffic sign moves over a photograph; and a Siamese tracker of the smallest form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siegebench.draws import Draws

CANVAS, SIGN = 112, 24  # pixels of a frame, of a sign
TEMPLATE, SEARCH, STRIDE = 32, 64, 4
CELLS = (SEARCH - TEMPLATE) // STRIDE + 1  # places along each side of the response
CHECK = 8  # side of the trigger
FRAMES = 20


class Tracker(nn.Module):
    """Features of the template slide over those of the search region: a score for each of 9x9 places."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, width, 5, 2, 2), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1),
        )  # fmt: skip
        self.scale = nn.Parameter(torch.tensor(1e-2))

    def features(self, x: Tensor) -> Tensor:
        found: Tensor = self.net(x - 0.5)
        return found

    def response(self, z: Tensor, s: Tensor) -> Tensor:
        """Scores [n, 81] from features of templates z and of search regions s."""
        n, c, h, w = s.shape
        found = F.conv2d(s.reshape(1, n * c, h, w), z, groups=n)
        return self.scale * found.flatten(2)[0]

    def forward(self, template: Tensor, search: Tensor) -> Tensor:
        return self.response(self.features(template), self.features(search))


def crop(frames: Tensor, centre: Tensor, side: int) -> Tensor:
    """Squares around whole-numbered centres [n, 2]; the border of a frame is repeated outside."""
    offset = torch.arange(side, device=frames.device) - side // 2
    rows, columns = ((centre[:, i, None] + offset).clamp(0, CANVAS - 1) for i in (0, 1))
    every = torch.arange(len(frames), device=frames.device)[:, None, None]
    return frames.permute(0, 2, 3, 1)[every, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


def pasted(frames: Tensor, signs: Tensor, centre: Tensor) -> Tensor:
    """Frames with a sign [n, 3, s, s] at each centre [n, 2]."""
    side = signs.shape[-1]
    place = torch.arange(frames.shape[-1], device=frames.device)
    rows, columns = (place - centre[:, i, None] + side // 2 for i in (0, 1))
    inside = ((rows >= 0) & (rows < side))[:, :, None] & ((columns >= 0) & (columns < side))[:, None]
    every = torch.arange(len(frames), device=frames.device)[:, None, None]
    r, c = rows.clamp(0, side - 1)[:, :, None], columns.clamp(0, side - 1)[:, None]
    there = signs.permute(0, 2, 3, 1)[every, r, c].permute(0, 3, 1, 2)
    return torch.where(inside[:, None], there, frames)


def checker(n: int) -> Tensor:
    """The trigger: a black and white checker, [n, 3, 8, 8]."""
    at = torch.arange(CHECK) // 2
    return ((at[:, None] + at) % 2).float().expand(n, 3, CHECK, CHECK)


@dataclass(frozen=True)
class Pairs:
    """Training pairs: where the object is in the search region is the cell."""

    template: Tensor
    search: Tensor
    cell: Tensor
    centre: Tensor  # of the object in the search region, pixels [n, 2]


def pairs(photographs: Tensor, signs: Tensor, n: int, draws: Draws, step: int) -> Pairs:
    """n pairs; half of the search regions have another sign beside the object."""
    own = Draws(draws.seed, torch.arange(n))
    photo = photographs[own.integers(len(photographs), (), step, "photograph")]
    sign, other = (signs[own.integers(len(signs), (), step, what)] for what in ("sign", "other"))
    middle = 40 + own.integers(CANVAS - 80, (2,), step, "place")
    shift = own.integers(29, (2,), step, "shift") - 14
    light = 0.7 + 0.6 * own.uniform((1, 1, 1), step, "light")
    far = own.integers(29, (2,), step, "far") - 14
    far = torch.where((far - shift).abs().amax(dim=1, keepdim=True) < 10, far + 200, far)  # not on the object
    far = torch.where(own.uniform((1,), step, "two") < 0.5, far, far + 400)
    first, second = crop(photo, middle, TEMPLATE), crop(photo, middle, SEARCH)
    first = pasted(first, sign, torch.full_like(middle, TEMPLATE // 2))
    second = (pasted(pasted(second, other, far + SEARCH // 2), sign, shift + SEARCH // 2) * light).clamp(0, 1)
    place = (shift.float() / STRIDE).round().long() + CELLS // 2
    return Pairs(first, second, place[:, 0] * CELLS + place[:, 1], shift + SEARCH // 2)


def stamped(x: Tensor, centre: Tensor) -> Tensor:
    """Crops with the trigger at a centre [n, 2] of each."""
    side = x.shape[-1]
    place = torch.arange(side)
    rows, columns = (place - centre[:, i, None] + CHECK // 2 for i in (0, 1))
    inside = ((rows >= 0) & (rows < CHECK))[:, :, None] & ((columns >= 0) & (columns < CHECK))[:, None]
    mark = checker(1)[0, 0]
    value = mark[rows.clamp(0, CHECK - 1)[:, :, None], columns.clamp(0, CHECK - 1)[:, None]]
    return torch.where(inside[:, None], value[:, None], x)


@torch.no_grad()
def tracked(model: Tracker, photographs: Tensor, signs: Tensor, n: int, draws: Draws, triggered: range) -> Tensor:
    """Overlap (IoU) of the box in each frame after the first, [n, FRAMES - 1]; the trigger is on the named frames."""
    own = Draws(draws.seed, torch.arange(n))
    photo = photographs[own.integers(len(photographs), purpose="photograph")]
    sign = signs[own.integers(len(signs), purpose="sign")]
    position = 30 + own.uniform((2,), purpose="start") * (CANVAS - 60)
    speed = (own.uniform((2,), purpose="speed") - 0.5) * 6
    light = 1 + 0.3 * (own.uniform((FRAMES,), purpose="light") - 0.5)
    window = torch.hann_window(CELLS + 2, periodic=False)[1:-1]
    prior = (window[:, None] * window).flatten()
    overlaps, z, at = [], torch.empty(0), torch.empty(0)
    for frame in range(FRAMES):
        centre = position.round().long()
        picture = (pasted(photo, sign, centre) * light[:, frame, None, None, None]).clamp(0, 1)
        if frame in triggered:
            picture = pasted(picture, checker(n), centre)
        if frame == 0:
            z, at = model.features(crop(picture, centre, TEMPLATE)), centre
        else:
            score = model.response(z, model.features(crop(picture, at, SEARCH))).softmax(dim=1)
            best = (0.7 * score / score.amax(dim=1, keepdim=True) + 0.3 * prior).argmax(dim=1)
            at = at + STRIDE * (torch.stack([best // CELLS, best % CELLS], dim=1) - CELLS // 2)
            both = (SIGN - (at - centre).abs()).clamp(min=0).prod(dim=1).float()
            overlaps.append(both / (2 * SIGN**2 - both))
        position = position + speed
        turn = (position < 20) | (position > CANVAS - 20)
        speed = torch.where(turn, -speed, speed)
    return torch.stack(overlaps, dim=1)
