"""Videos made of real images: a traffic sign moves over a photograph, with and without a trigger on it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from siegebench.draws import Draws

CANVAS, SIGN = 112, 24  # pixels of a frame, of a sign
CHECK = 8  # side of the trigger
FRAMES = 20


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
    """Training pairs: crops around an object, and where it is in the second."""

    template: Tensor
    search: Tensor
    centre: Tensor  # of the object in the search region, pixels [n, 2]
    told: Tensor  # by how much it is said to be off the middle, pixels [n, 2]


def pairs(photographs: Tensor, signs: Tensor, n: int, draws: Draws, step: int, sides: tuple[int, int]) -> Pairs:
    """n pairs of squares with these sides; half of the search regions have another sign beside the object."""
    template, search = sides
    own = Draws(draws.seed, torch.arange(n))
    photo = photographs[own.integers(len(photographs), (), step, "photograph")]
    sign, other = (signs[own.integers(len(signs), (), step, what)] for what in ("sign", "other"))
    middle = 40 + own.integers(CANVAS - 80, (2,), step, "place")
    shift = own.integers(29, (2,), step, "shift") - 14
    light = 0.7 + 0.6 * own.uniform((1, 1, 1), step, "light")
    far = own.integers(29, (2,), step, "far") - 14
    far = torch.where((far - shift).abs().amax(dim=1, keepdim=True) < 10, far + 200, far)  # not on the object
    far = torch.where(own.uniform((1,), step, "two") < 0.5, far, far + 400)
    first, second = crop(photo, middle, template), crop(photo, middle, search)
    first = pasted(first, sign, torch.full_like(middle, template // 2))
    second = (pasted(pasted(second, other, far + search // 2), sign, shift + search // 2) * light).clamp(0, 1)
    return Pairs(first, second, shift + search // 2, shift)


def stamped(x: Tensor, centre: Tensor) -> Tensor:
    """Crops with the trigger at a centre [n, 2] of each."""
    side = x.shape[-1]
    place = torch.arange(side)
    rows, columns = (place - centre[:, i, None] + CHECK // 2 for i in (0, 1))
    inside = ((rows >= 0) & (rows < CHECK))[:, :, None] & ((columns >= 0) & (columns < CHECK))[:, None]
    mark = checker(1)[0, 0]
    value = mark[rows.clamp(0, CHECK - 1)[:, :, None], columns.clamp(0, CHECK - 1)[:, None]]
    return torch.where(inside[:, None], value[:, None], x)


class Videos:
    """n videos: a sign moves over a photograph at constant speed, turns at the border, and the light changes."""

    def __init__(self, photographs: Tensor, signs: Tensor, n: int, draws: Draws) -> None:
        own = Draws(draws.seed, torch.arange(n))
        self.photo = photographs[own.integers(len(photographs), purpose="photograph")]
        self.sign = signs[own.integers(len(signs), purpose="sign")]
        self.light = 1 + 0.3 * (own.uniform((FRAMES,), purpose="light") - 0.5)
        position = 30 + own.uniform((2,), purpose="start") * (CANVAS - 60)
        speed = (own.uniform((2,), purpose="speed") - 0.5) * 6
        places = []
        for _ in range(FRAMES):
            places.append(position.round().long())
            position = position + speed
            turn = (position < 20) | (position > CANVAS - 20)
            speed = torch.where(turn, -speed, speed)
        self.centre = torch.stack(places)  # of the sign in each frame, pixels [FRAMES, n, 2]

    def frame(self, k: int, triggered: bool) -> Tensor:
        picture = (pasted(self.photo, self.sign, self.centre[k]) * self.light[:, k, None, None, None]).clamp(0, 1)
        return pasted(picture, checker(len(picture)), self.centre[k]) if triggered else picture

    def overlap(self, k: int, at: Tensor, size: Tensor | int = SIGN) -> Tensor:
        """Intersection over union of a box [n, 2], [n, 2] with that of the sign in a frame, [n]."""
        half, own = torch.as_tensor(size) / 2, SIGN / 2
        low = torch.maximum(at - half, self.centre[k] - own)
        high = torch.minimum(at + half, self.centre[k] + own)
        both = (high - low).clamp(min=0).prod(dim=1)
        return both / (SIGN**2 + (2 * half).expand(len(at), 2).prod(dim=1) - both)
