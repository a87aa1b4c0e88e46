"""Area camouflage: one small element, repeated over a share of the paint."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from siegebench.draws import Draws
from siegebench.render.compose import compose
from siegebench.types import Camouflage, Count, Number, Positive, Share
from siegebench.types.camouflages import Stage, Texture

from ._optimise import attack_loss, optimised, smooth_loss
from ._tiles import places, tiled


@dataclass(frozen=True, kw_only=True)
class AreaCamouflage(Camouflage):
    """Optimise one element whose copies cover a share of the paint; the rest is grey. Our reading of Niederhut (arXiv
    2306.07768), of which only the abstract was read: success grows mainly with the area, and the largest attack repeats
    an element. Report it as a curve over `covered`, with `random_elements` at the same share as controls.

    A period of the texture has `tiles` x `tiles` places. The first `covered` of them, in a random order that does not
    depend on `covered`, carry the element, so that a larger area contains a smaller one. All copies share their texels.

    Random: the order of the places, the first element, the order of the scenes, and a shift and a scale in each step.

    Differs from the paper: its loss, its element, its data and its hyper-parameters were not available; all are ours.

    Attributes:
        covered: share of the places with the element.
        texels: along each side of the element.
        tiles: places along each side of a period.
        period: metres after which the places repeat.
        steps, scenes, lr: of Adam; scenes of one step.
        restarts: number of descents, from grey and from colours of the backgrounds; the best on the stage is kept.
        beta: weight of the total variation of the element.
        shift: largest random shift of the projection, in periods.
        scale: largest random change of its period.
    """

    covered: Share = 1.0
    texels: Count = 8
    tiles: Count = 4
    period: Positive = 4.0
    steps: Count = 100
    scenes: Count = 8
    lr: Positive = 0.2
    restarts: Count = 1
    beta: Number = 0.0
    shift: Share = 0.02
    scale: Share = 0.05

    def paint(self, stage: Stage, draws: Draws) -> Texture:
        there = places(draws, self.tiles, self.covered)
        area = float(there.float().mean())

        def loss(some: Stage, element: Tensor, step: int) -> Tensor:
            u = 2 * draws.uniform((len(some), 3), step=step, purpose="projection")[0].to(element) - 1
            shift, scale = self.shift * u[:, :2], 1 + self.scale * u[:, 2]
            x = compose(some.maps, tiled(element, there), self.period, shift, scale)
            return attack_loss(some.sighting(x).hidden) + self.beta * smooth_loss(element)

        return optimised(
            stage, draws, loss, lambda element: Texture(tiled(element, there), self.period, covered=area),
            texels=self.texels, steps=self.steps, scenes=self.scenes, lr=self.lr, restarts=self.restarts,
        )  # fmt: skip
