"""Defenses that keep their contract, and one or more for each clause that break it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from siegebench.classifier import Classifier, Wrapped
from siegebench.draws import Draws
from siegebench.types import (
    Defense,
)


class Noisy(Wrapped):
    """Adds noise, where from is said by `source`."""

    def __init__(self, inner: Classifier, source: str) -> None:
        super().__init__(inner)
        self.source = source

    def forward(self, x, draws=None):
        if self.source == "torch":
            noise = torch.randn_like(x)
        else:
            noise = (draws or Draws.fresh(len(x), x.device)).normal(tuple(x.shape[1:])).to(x)
        return self.inner(x + 0.1 * noise)


class Changed(Wrapped):
    """Logits by any function of (inner, images)."""

    def __init__(self, inner: Classifier, how: Any, hidden: Any = None) -> None:
        super().__init__(inner)
        self.how, self.hidden = how, hidden

    def forward(self, x, draws=None):
        return self.how(self, x)

    def backward_model(self, x, draws=None):
        return self.inner(x)


class StraightThrough(Changed):
    def backward_model(self, x, draws=None):
        return self.inner(x + (rounded(x) - x).detach())


def rounded(x: Tensor) -> Tensor:
    return (x * 15).round() / 15


ADAPTIVE = ({"name": "pgd", "loss": "margin"},)


@dataclass(frozen=True, kw_only=True)
class Honest(Defense):
    adaptive: ClassVar[Any] = ADAPTIVE

    def wrap(self, model):
        return Changed(model, lambda self, x: self.inner(0.9 * x))


class HonestNoise(Honest):
    randomized: ClassVar[bool] = True

    def wrap(self, model):
        return Noisy(model, "draws")


class HonestRounding(Honest):
    differentiable: ClassVar[bool] = False

    def wrap(self, model):
        return StraightThrough(model, lambda self, x: self.inner(rounded(x)))


class HonestTraining(Honest):
    trains: ClassVar[bool] = True

    def fit(self, defended, data, draws):
        with torch.no_grad():
            for p in defended.parameters():
                p.mul_(1.1)


class DoesNothing(Honest):
    def wrap(self, model):
        return Wrapped(model)


class TrainsNothing(HonestTraining):
    def wrap(self, model):
        return Wrapped(model)

    def fit(self, defended, data, draws):
        pass


class ChangesTheModel(Honest):
    def wrap(self, model):
        with torch.no_grad():
            next(model.parameters()).mul_(1.1)
        return model


class FreezesTheModel(Honest):
    def wrap(self, model):
        return Wrapped(model.requires_grad_(False))


class MarksTheModel(Honest):
    def wrap(self, model):
        model.randomized = True
        return model


class ReadsUndeclared(HonestTraining):
    def fit(self, defended, data, draws):
        super().fit(defended, data.train, draws)


class HidesItsNoise(Honest):
    def wrap(self, model):
        return Noisy(model, "draws")


class NoiseOfTorch(HonestNoise):
    def wrap(self, model):
        return Noisy(model, "torch")


class OnlyClaimsNoise(Honest):
    randomized: ClassVar[bool] = True


class ClaimsGradients(Honest):
    def wrap(self, model):
        return StraightThrough(model, lambda self, x: self.inner(rounded(x)))


class CutsTheGraph(Honest):
    def wrap(self, model):
        return Changed(model, lambda self, x: self.inner(x.detach()).detach())


class AnotherSurrogate(HonestRounding):
    def wrap(self, model):
        return Changed(model, lambda self, x: self.inner(rounded(x)))  # its surrogate does not round


class NaNGradient(Honest):
    def wrap(self, model):
        return Changed(model, lambda self, x: self.inner(x) + (x * 0).sum(dim=(1, 2, 3)).sqrt()[:, None])


class LooksAtTheBatch(Honest):
    def wrap(self, model):
        return Changed(model, lambda self, x: self.inner(x - 0.1 * x.mean(dim=0)))


class Float32Only(Honest):
    def wrap(self, model):
        return Changed(model, lambda self, x: self.inner(x).float())


class ForgetsItsState(HonestTraining):
    def wrap(self, model):
        return Changed(model, lambda self, x: self.inner(x) * (self.hidden or 1.0))

    def fit(self, defended, data, draws):
        defended.hidden = 2.0


class TrainsByChance(HonestTraining):
    def fit(self, defended, data, draws):
        with torch.no_grad():
            for p in defended.parameters():
                p.add_(0.01 * torch.randn_like(p))


class RacesNowhere(Honest):
    tracks: ClassVar[Any] = ("marathon",)


class NobodyKnowsIt(Honest):
    adaptive: ClassVar[Any] = ()


class UnknownAdaptive(Honest):
    adaptive: ClassVar[Any] = ({"name": "pdg"},)


HONEST = [
    ("defense", Honest()),
    ("defense", HonestNoise()),
    ("defense", HonestRounding()),
    ("defense", HonestTraining()),
]


BROKEN = [
    ("defense", ChangesTheModel(), "applies with the data its card declares", "changed the model it was given"),
    ("defense", ReadsUndeclared(), "applies with the data its card declares", "reads 'train'"),
    ("defense", DoesNothing(), "changes the model", "equal those of the given one"),
    ("defense", TrainsNothing(), "changes the model", "equal those of the given one"),
    ("defense", FreezesTheModel(), "leaves the given model as found", "flags"),
    ("defense", MarksTheModel(), "leaves the given model as found", "flags"),
    ("defense", HidesItsNoise(), "is as random as it declares", "depend on the draws"),
    ("defense", NoiseOfTorch(), "is as random as it declares", "torch"),
    ("defense", OnlyClaimsNoise(), "is as random as it declares", "two passes are equal"),
    ("defense", ClaimsGradients(), "lets gradients through as it declares", "zero for 6 of 6"),
    ("defense", CutsTheGraph(), "lets gradients through as it declares", "no gradient passes"),
    ("defense", AnotherSurrogate(), "lets gradients through as it declares", "other logits"),
    ("defense", NaNGradient(), "lets gradients through as it declares", "not finite"),
    ("defense", LooksAtTheBatch(), "works in float64 and on one image", "alone gets other logits"),
    ("defense", Float32Only(), "works in float64 and on one image", "torch.float32"),
    ("defense", ForgetsItsState(), "keeps its trained state when saved", "not in state_dict"),
    ("defense", TrainsByChance(), "trains the same for the same draws", "torch"),
    ("defense", RacesNowhere(), "names tracks that exist", "'marathon'"),
    ("defense", NobodyKnowsIt(), "has adaptive attacks that can be built", "no adaptive attack"),
    ("defense", UnknownAdaptive(), "has adaptive attacks that can be built", "Did you mean pgd?"),
]
