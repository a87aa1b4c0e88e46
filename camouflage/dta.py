"""DTA: a small repeated pattern on the plane of the picture, optimised through an exact renderer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from siegebench.draws import Draws
from siegebench.render.compose import compose
from siegebench.types import Camouflage, Count, Positive, Share
from siegebench.types.camouflages import Stage, Texture

from ._optimise import attack_loss, optimised


@dataclass(frozen=True, kw_only=True)
class DTA(Camouflage):
    """Minimise L = -log(1 - max_b conf_vehicle(b)) over one repeated pattern (Suryanto et al., CVPR 2022).

    The pattern eta_b lies on a plane through the middle of the vehicle that faces the camera, as the paper's repeated
    texture projection, which follows the camera and is no map of the surface.

    Random: the first pattern, the order of the scenes, and a shift and a scale of the projection in each step.

    Differs from the paper: the maps of the renderer are exact, where the paper trains a network (DTN) to predict them
    from flat colours; the pattern is optimised on many vehicles instead of one; Adam on the logit of the pattern, its
    learning rate, the number of steps and the augmentation are ours.

    Attributes:
        texels: n of the n x n pattern.
        period: metres after which it repeats.
        steps, scenes, lr: of Adam; scenes of one step.
        restarts: number of descents, from grey and from colours of the backgrounds; the best on the stage is kept.
        shift: largest random shift of the pattern, in periods.
        scale: largest random change of its size.
    """

    texels: Count = 16
    period: Positive = 4.0
    steps: Count = 100
    scenes: Count = 8
    lr: Positive = 0.2
    restarts: Count = 1
    shift: Share = 0.02
    scale: Share = 0.05

    def paint(self, stage: Stage, draws: Draws) -> Texture:
        def loss(some: Stage, eta: Tensor, step: int) -> Tensor:
            u = 2 * draws.uniform((len(some), 3), step=step, purpose="projection")[0].to(eta) - 1
            x = compose(some.maps, eta, self.period, self.shift * u[:, :2], 1 + self.scale * u[:, 2], "screen")
            return attack_loss(some.sighting(x, strict=False).hidden)

        return optimised(
            stage, draws, loss, lambda eta: Texture(eta, self.period, "screen"), texels=self.texels, steps=self.steps,
            scenes=self.scenes, lr=self.lr, restarts=self.restarts,
        )  # fmt: skip
