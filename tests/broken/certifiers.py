"""Certifiers that keep their contract, and one or more for each clause that break it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from siegebench.classifier import Wrapped
from siegebench.types import Certificate, Certifier

DUAL = {"linf": 1.0, "l2": 2.0, "l1": torch.inf}


@dataclass(frozen=True, kw_only=True)
class LinearMargin(Certifier):
    """An honest certifier, to be broken below: exact for a linear network, nothing for another one."""

    norms: ClassVar[frozenset[str]] = frozenset({"linf", "l2"})
    scale: ClassVar[float] = 0.9999

    def certify(self, model, x, norm, radii, draws):
        z = model(x)
        top = z.argmax(dim=1)
        radius = torch.full_like(z[:, 0], -1.0)
        layers = [m for m in model.net if not isinstance(m, nn.Flatten)]
        if len(layers) == 1:
            w = layers[0].weight
            gap = z.gather(1, top[:, None]) - z
            far = gap / (w[top][:, None] - w[None]).norm(DUAL[norm], dim=2)
            radius = far.scatter(1, top[:, None], torch.inf).amin(dim=1) * self.scale
        return Certificate(top, torch.stack([radius >= r for r in radii]))


class TooLarge(LinearMargin):
    scale: ClassVar[float] = 1.1


class OfWrongPredictions(LinearMargin):
    def certify(self, model, x, norm, radii, draws):
        found = super().certify(model, x, norm, radii, draws)
        return Certificate((found.prediction + 1) % model.num_classes, found.holds)


class NotANumber(LinearMargin):
    def certify(self, model, x, norm, radii, draws):
        found = super().certify(model, x, norm, radii, draws)
        return Certificate(found.prediction, found.holds * torch.nan)


class WhileAbstaining(LinearMargin):
    def certify(self, model, x, norm, radii, draws):
        found = super().certify(model, x, norm, radii, draws)
        return Certificate(found.prediction * 0 - 1, ~found.holds)


class OnlyLargeRadii(LinearMargin):
    def certify(self, model, x, norm, radii, draws):
        found = super().certify(model, x, norm, radii, draws)
        holds = found.holds.clone()
        holds[-1] = True
        return Certificate(found.prediction, holds)


class Vacuous(LinearMargin):
    scale: ClassVar[float] = 0.0


class OfAnotherPredictor(LinearMargin):
    def predictor(self, model):
        return Shifted(model)


class Shifted(Wrapped):
    def forward(self, x, draws=None):
        return super().forward(x, draws).roll(1, dims=1)


class ByChance(LinearMargin):
    def certify(self, model, x, norm, radii, draws):
        found = super().certify(model, x, norm, radii, draws)
        return Certificate(found.prediction, found.holds & bool(torch.rand(()) < 2))


class ByTheBatch(LinearMargin):
    def certify(self, model, x, norm, radii, draws):
        found = super().certify(model, x, norm, radii, draws)
        return Certificate(found.prediction if len(x) > 2 else found.prediction * 0 - 1, found.holds)


class LeavesTraining(LinearMargin):
    def certify(self, model, x, norm, radii, draws):
        found = super().certify(model, x, norm, radii, draws)
        model.train()
        return found


class NeverBroken(LinearMargin):
    def refutes(self, model, x, y, draws):
        return torch.zeros(len(x), dtype=torch.bool)


class BelievesNetworks(LinearMargin):
    def certify(self, model, x, norm, radii, draws):
        found = super().certify(model, x, norm, radii, draws)
        return found if found.holds.any() else Certificate(found.prediction, ~found.holds)


HONEST = [("certifier", LinearMargin())]

SHAPE = "returns a certificate of the right shape"
BOUNDARY = "certifies nothing beyond the boundary of a linear network"

BROKEN = [
    ("certifier", NotANumber(), SHAPE, "holds is torch.float32 (3, 12); expected torch.bool (3, 12)"),
    ("certifier", WhileAbstaining(), SHAPE, "certifies images on which it abstains"),
    ("certifier", OnlyLargeRadii(), SHAPE, "certifies a radius and not a smaller one"),
    ("certifier", TooLarge(), BOUNDARY, "8 of 8 images certified at 1.001 times the distance"),
    ("certifier", OfWrongPredictions(), BOUNDARY, "the prediction of 8 of 8 images is wrong"),
    ("certifier", Vacuous(), "certifies images far from the boundary", "0 of 8 images of a linear network"),
    ("certifier", OfAnotherPredictor(), "predicts what its predictor predicts", "are not those of the predictor"),
    ("certifier", ByChance(), "gives the same certificate for the same draws", "torch"),
    ("certifier", ByTheBatch(), "treats an image alone as in a batch", "in another batch"),
    ("certifier", LeavesTraining(), "leaves the model as found", "changed weights, modes"),
    ("certifier", NeverBroken(), "tells when a certificate is broken", "8 of 8 images of the other class"),
    ("certifier", BelievesNetworks(), "is not broken by attacks", "an attack breaks"),
]
