"""Shortcut: a cue that predicts the class, planted into the images of another data set."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from siegebench.data import ImageSet
from siegebench.draws import Draws, derive_seed
from siegebench.errors import DataError
from siegebench.types import Count, DataSource, Share


@dataclass(frozen=True, kw_only=True)
class Shortcut(DataSource):
    """Images of a data set with a colour that stands for a class: the image's own with probability `predictivity`.

    Otherwise it is the colour of another class, drawn at random; with predictivity 1/K it contains no information.
    The splits `core` and `cue` have the same test images, each with the colour of another class: the labels of `core`
    are the classes of the images, those of `cue` the classes of the colours. The measure `shortcut_bias` uses these
    splits. Training on such images is a clean-label backdoor with a trigger for every class.

    Random: the colours of the images, from `seed`.

    Attributes:
        data: the data set; RGB images.
        cue: `tint` mixes the image with the colour, `border` frames it, `corner` is a square in the upper left.
        predictivity: how often the colour is that of the class.
        size: width of the border, or side of the square, in pixels.
        strength: weight of the colour in a tint.
        seed: of the choice of colours.
    """

    data: DataSource
    cue: Literal["tint", "border", "corner"] = "tint"
    predictivity: Share = 0.9
    size: Count = 3
    strength: Share = 0.2
    seed: int = 0

    def known_splits(self) -> tuple[str, ...]:
        return (*self.data.known_splits(), "core", "cue")

    def load(self, split: str) -> ImageSet:
        if split not in self.known_splits():
            raise self.no_split("shortcut", split)
        apart = split in ("core", "cue")
        whole = self.data.load("test" if apart else split)
        if whole.shape[0] != 3:
            raise DataError(f"shortcut: {whole.name} has {whole.shape[0]} channels; the cue is a colour and needs 3")
        draws, y = Draws(derive_seed(self.seed, "core" if apart else split), whole.ids), whole.labels
        other = (y + 1 + draws.integers(whole.num_classes - 1, purpose="other")) % whole.num_classes
        own = (draws.uniform(purpose="own") < self.predictivity) & (not apart)
        said = torch.where(own, y, other)
        parts = [self._marked(whole.pixels(i), said[i], whole.num_classes) for i in torch.arange(len(y)).split(1024)]
        images = torch.cat([whole.kind.store(part) for part in parts])
        return replace(
            whole, source=images, labels=said if split == "cue" else y, name=f"shortcut/{whole.name} {split}"
        )

    def _marked(self, x: Tensor, said: Tensor, classes: int) -> Tensor:
        colour = colours(classes)[said][..., None, None]
        if self.cue == "tint":
            return (1 - self.strength) * x + self.strength * colour
        height, width = x.shape[2:]
        if 2 * self.size >= min(height, width):
            raise DataError(f"shortcut: size {self.size} covers images of {width}x{height} pixels; give a smaller one")
        rows, columns = torch.arange(height)[:, None], torch.arange(width)
        inside = (rows < self.size) & (columns < self.size)
        if self.cue == "border":
            least = torch.minimum(torch.minimum(rows, height - 1 - rows), torch.minimum(columns, width - 1 - columns))
            inside = least < self.size
        return torch.where(inside, colour, x)


def colours(classes: int) -> Tensor:
    """A colour for each class, [classes, 3]: hues around the circle, in two shades when there are more than twelve."""
    shades = 1 if classes <= 12 else 2
    hues = -(-classes // shades)
    found = [colorsys.hsv_to_rgb((c // shades) / hues, 1.0, (1.0, 0.5)[c % shades]) for c in range(classes)]
    return torch.tensor(found)
