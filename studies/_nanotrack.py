"""NanoTrack, a published single-object tracker, from its files for ncnn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench.errors import ModelError
from siegebench.ncnn import NcnnNet

from ._trackers import Place, Tracker
from ._videos import SIGN, Pairs

INPUTS = (127, 255)  # pixels of template and search region, as the network sees them
POINTS, STRIDE = 16, 16  # of the head, along each side
WIDTH = 48  # channels of the features
PENALTY, WINDOW, RATE = 0.148, 0.462, 0.390  # of the published demonstration
SMALLEST = 10  # pixels of a box, as there
CONTEXT = 0.5  # of the mean of height and width, around the object on each pair of sides


class NanoTrack(Tracker):
    """A MobileNet of 16 px stride, and a head that gives each of 16x16 points a score and the distances to a box.

    Chu, HonglinChu/NanoTrack, weights under the Apache licence 2.0. Batch norms are part of the convolutions there.

    Raises:
        ModelError: when the files are of another network.
    """

    sides = (2 * SIGN, 4 * SIGN)

    def __init__(self, backbone: Path, head: Path) -> None:
        super().__init__()
        self.backbone = NcnnNet(backbone, backbone.with_suffix(".bin"))
        self.head = NcnnNet(head, head.with_suffix(".bin"), inputs=2, outputs=2)
        line = STRIDE * (torch.arange(POINTS) - POINTS // 2)
        self.register_buffer("points", torch.stack(torch.meshgrid(line, line, indexing="ij")).flatten(1).float())
        self.points: Tensor  # row and column from the middle of the search region, [2, 256]
        window = torch.hann_window(POINTS, periodic=False)
        self.register_buffer("window", (window[:, None] * window).flatten())
        self.window: Tensor
        with torch.no_grad():
            z, s = (self.features(torch.zeros(1, 3, side, side)) for side in self.sides)
        found = [tuple(t.shape) for t in (z, s)]
        if found != [(1, WIDTH, 8, 8), (1, WIDTH, 16, 16)]:
            raise ModelError(f"{backbone}: returns features {found}; expected those of NanoTrack, {WIDTH} channels")

    def features(self, x: Tensor) -> Tensor:
        """Of crops of a frame; those with the first of `sides` are templates."""
        side = INPUTS[x.shape[-1] != self.sides[0]]
        return self._seen(F.interpolate(x, (side, side), mode="bilinear", align_corners=False))

    def _seen(self, x: Tensor) -> Tensor:
        found: Tensor = self.backbone((255 * x).contiguous(memory_format=torch.channels_last))
        return found

    def response(self, z: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [n, 2, 256] of background and object, and boxes [n, 4, 256]: top, left, bottom, right."""
        logits, distances = self.head(z, s)
        left, top, right, bottom = distances.flatten(2).unbind(1)
        rows, columns = self.points
        return logits.flatten(2), torch.stack([rows - top, columns - left, rows + bottom, columns + right], dim=1)

    def loss(self, made: Pairs) -> Tensor:
        """Cross-entropy of the points in and around the object, and -log of the overlap of their boxes."""
        logits, boxes = self.response(self.features(made.template), self.features(made.search))
        scale = INPUTS[1] / self.sides[1]
        centre, half = scale * made.told.float()[:, :, None], scale * SIGN / 2
        off = ((self.points - centre) / half).square().sum(dim=1)  # 1 on the ellipse in the box of the object
        inside, outside = off <= 0.25, off > 1
        each = F.cross_entropy(logits, inside.long(), reduction="none")
        low = torch.maximum(boxes[:, :2], centre - half)
        high = torch.minimum(boxes[:, 2:], centre + half)
        both = (high - low).clamp(min=0).prod(dim=1)
        overlap = both / ((boxes[:, 2:] - boxes[:, :2]).prod(dim=1) + (2 * half) ** 2 - both)
        missed = -overlap.clamp(min=1e-6).log()
        return (each[inside].mean() + each[outside].mean()) / 2 + missed[inside].mean()

    def start(self, picture: Tensor, centre: Tensor) -> Place:
        place = Place(torch.empty(0), centre.float(), torch.full((len(centre), 2), float(SIGN)))
        return replace(place, template=self._seen(self._cut(picture, place, INPUTS[0])))

    def follow(self, place: Place, picture: Tensor) -> Place:
        logits, boxes = self.response(place.template, self._seen(self._cut(picture, place, INPUTS[1])))
        score = logits.softmax(dim=1)[:, 1]
        scale = INPUTS[0] / _context(place.size)[:, None]  # pixels of the network for one of the frame
        size, known = boxes[:, 2:] - boxes[:, :2], (place.size * scale)[:, :, None]
        grown = _change(_context(size) / _context(known))
        bent = _change((size[:, 0] / size[:, 1]) / (known[:, 0] / known[:, 1]))
        calm = (-(grown * bent - 1) * PENALTY).exp()
        best = ((1 - WINDOW) * calm * score + WINDOW * self.window).argmax(dim=1, keepdim=True)
        chosen = boxes.gather(2, best[:, None].expand(-1, 4, 1))[:, :, 0]
        rate, edge = RATE * (calm * score).gather(1, best), torch.tensor(picture.shape[2:])
        at = place.at + (chosen[:, :2] + chosen[:, 2:]) / 2 / scale
        grown_to = (1 - rate) * place.size + rate * (chosen[:, 2:] - chosen[:, :2]) / scale
        return Place(place.template, at.clamp(min=0).minimum(edge), grown_to.clamp(min=SMALLEST).minimum(edge))

    def _cut(self, picture: Tensor, place: Place, side: int) -> Tensor:
        """Squares around the object, of the context that the network was trained with, resized to a side."""
        height, width = picture.shape[2:]
        reach = _context(place.size) * side / INPUTS[0]
        line = (torch.arange(side) + 0.5) / side - 0.5
        rows, columns = (place.at[:, i, None] + reach[:, None] * line for i in (0, 1))
        across, down = (2 * columns / width - 1)[:, None], (2 * rows / height - 1)[:, :, None]
        grid = torch.stack([across.expand(-1, side, -1), down.expand(-1, -1, side)], dim=3)
        return F.grid_sample(picture, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _context(size: Tensor) -> Tensor:
    """Side of the square with the context of boxes [n, 2, ...]."""
    around = CONTEXT * size.sum(dim=1, keepdim=True)
    return (size + around).prod(dim=1).sqrt()


def _change(ratio: Tensor) -> Tensor:
    return torch.maximum(ratio, 1 / ratio)
