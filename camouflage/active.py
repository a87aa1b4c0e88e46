"""ACTIVE: one texture for every vehicle, laid on its surface along the dominant axes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from siegebench.draws import Draws
from siegebench.render.compose import compose
from siegebench.types import Camouflage, Count, Number, Positive, Share
from siegebench.types.camouflages import Stage, Texture

from ._optimise import attack_loss, camouflage_loss, optimised, output_augmented, smooth_loss


@dataclass(frozen=True, kw_only=True)
class ACTIVE(Camouflage):
    """Minimise L = alpha L_atk + beta L_sm + gamma L_cm over one texture (Suryanto et al., ICCV 2023).

    Triplanar mapping puts the texture on the surface along the dominant axis of its normal, so that one texture fits
    every vehicle. With g(n) = -log(1 - n): L_atk = g(max_b s(b)) over the candidates that overlap the vehicle (stealth
    loss), L_sm is a log-scaled total variation, and L_cm = mean g(distance to the nearest dominant colour of the
    backgrounds). Each step shifts and scales the projection, and changes the scale, place, brightness and contrast of
    the picture (random output augmentation).

    Random: the first texture, the order of the scenes, and the augmentations of each step.

    Differs from the paper: the maps of the renderer are exact, where the paper trains a network (NTR) to predict them
    from flat colours; L_sm is periodic, as the texture repeats; |.| of a colour is the mean over its channels; Adam
    works on the logit of the texture; its learning rate and the numbers of scenes and steps are ours; a classifier has
    one candidate; the texture is coarser and the augmentations are weaker than the paper's by default, because the
    vehicles are small in our pictures (the preset `paper` has its numbers).

    Attributes:
        texels: along each side.
        period: metres after which the texture repeats.
        steps, scenes, lr: of Adam; scenes of one step.
        restarts: number of descents, from grey and from colours of the backgrounds; the best on the stage is kept.
        alpha, beta, gamma: weights of the losses.
        candidates: of a detector, the mean over so many with the highest scores.
        shift: largest random shift of the projection, in periods.
        scale: largest random change of its period.
        smallest: smallest random scale of the picture.
        brightness: largest change of the brightness.
        contrast: lowest and highest factor of the contrast.
    """

    texels: Count = 16
    period: Positive = 4.0
    steps: Count = 100
    scenes: Count = 8
    lr: Positive = 0.2
    restarts: Count = 1
    alpha: Number = 1.0
    beta: Number = 0.25
    gamma: Number = 0.25
    candidates: Count = 1
    shift: Share = 0.02
    scale: Share = 0.05
    smallest: Share = 0.8
    brightness: Share = 0.1
    contrast: tuple[Positive, Positive] = (0.9, 1.1)

    def paint(self, stage: Stage, draws: Draws) -> Texture:
        def loss(some: Stage, eta: Tensor, step: int) -> Tensor:
            u = 2 * draws.uniform((len(some), 3), step=step, purpose="projection")[0].to(eta) - 1
            x = compose(some.maps, eta, self.period, self.shift * u[:, :2], 1 + self.scale * u[:, 2])
            x, boxes = output_augmented(
                x, some.maps.box, draws, step, self.smallest, self.brightness, self.contrast
            )  # fmt: skip
            total = self.alpha * attack_loss(some.sighting(x, boxes).hidden, self.candidates)
            total = total + self.beta * smooth_loss(eta)
            return total + self.gamma * camouflage_loss(eta, some.colours) if self.gamma else total

        return optimised(
            stage, draws, loss, lambda eta: Texture(eta, self.period), texels=self.texels, steps=self.steps,
            scenes=self.scenes, lr=self.lr, restarts=self.restarts,
        )  # fmt: skip
