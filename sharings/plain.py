"""Plain sharing: the mean gradient itself."""

from __future__ import annotations

from dataclasses import dataclass

from siegebench.draws import Draws
from siegebench.per_image import Gradients
from siegebench.types import Sharing


@dataclass(frozen=True, kw_only=True)
class Plain(Sharing):
    """Release the mean gradient of the images, as in federated learning without protection.

    Nothing is random.
    """

    def release(self, per_image: Gradients, draws: Draws) -> Gradients:
        return {name: g.mean(dim=1) for name, g in per_image.items()}
