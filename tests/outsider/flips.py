"""A poison without a trigger, as another package would bring it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.types import Material, Poisoned, Poisoning, Share


@dataclass(frozen=True, kw_only=True)
class Flips(Poisoning):
    """Gives some training images the label of the next class. Random is which."""

    rate: Share = 0.1

    def poison(self, data: ImageSet, seed: int, material: Material | None = None) -> Poisoned:
        index = Draws(seed, data.ids).order("flips")[: round(self.rate * len(data))].sort().values
        labels = data.labels.clone()
        labels[index] = (labels[index] + 1) % data.num_classes
        return Poisoned(replace(data, labels=labels), index)
