"""Open set: some classes of a data set are left out of training, and their images are unknown."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.errors import DataError
from siegebench.types import Count, DataSource


@dataclass(frozen=True, kw_only=True)
class OpenSet(DataSource):
    """The images of the known classes of a data set, or of the unknown ones. Labels are numbered anew in each part.

    Networks are trained on the known classes. Images of the unknown ones are near to them: one camera, one codec, one
    kind of object. Detectors that only tell data sets apart do not find them.

    Random: which classes are unknown, from `seed`.

    Attributes:
        data: the whole data set.
        unknown: number of classes that are left out.
        part: `known` or `unknown`.
        seed: of the choice.
    """

    data: DataSource
    unknown: Count
    part: Literal["known", "unknown"] = "known"
    seed: int = 0

    def load(self, split: str) -> ImageSet:
        return self._part(self.data.load(split))

    def scan(self, split: str) -> ImageSet:
        return self._part(self.data.scan(split))

    def known_splits(self) -> tuple[str, ...]:
        return self.data.known_splits()

    def _part(self, whole: ImageSet) -> ImageSet:
        if self.unknown > whole.num_classes - 2:
            raise DataError(
                f"{whole.name}: unknown is {self.unknown}; at least 2 of its {whole.num_classes} classes must stay "
                "known"
            )
        order = Draws(self.seed, torch.arange(whole.num_classes)).order("unknown")
        chosen = (order[: self.unknown] if self.part == "unknown" else order[self.unknown :]).sort().values
        new = torch.full((whole.num_classes,), -1)
        new[chosen] = torch.arange(len(chosen))
        index = (new[whole.labels] >= 0).nonzero().squeeze(1)
        if not len(index):
            raise DataError(f"{whole.name}: no image of its {self.part} classes {chosen.tolist()}")
        found = whole.select(index, f"{whole.name}/{self.part}")
        names = None if whole.classes is None else tuple(whole.classes[c] for c in chosen.tolist())
        return replace(found, labels=new[found.labels], num_classes=len(chosen), classes=names)
