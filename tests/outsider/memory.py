from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.threat import Access, Norm, ThreatModel
from siegebench.types import Attack, Count, Lesson


@dataclass(frozen=True, kw_only=True)
class Memory(Attack):
    """Pastes the corner of a training image, the first of them, over the same corner; asks nobody.

    Nothing is random.

    Attributes:
        side: of the corner, in pixels.
    """

    needs: ClassVar[Access] = "none"
    norms: ClassVar[tuple[Norm, ...]] = ("l0", "linf")
    learns: ClassVar[bool] = True
    restricted: ClassVar[bool] = True

    side: Count = 2

    def learn(self, oracle: Oracle, data: ImageSet, threat: ThreatModel, draws: Draws) -> Tensor:
        return data.pixels(slice(0, 1))

    def run(
        self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws, lesson: Lesson = None
    ) -> Tensor:
        image: Tensor = lesson
        out = x.clone()
        out[:, :, : self.side, : self.side] = image[0, :, : self.side, : self.side].to(x.dtype)
        return threat.project(out, x)
