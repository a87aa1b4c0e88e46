"""Detectors that keep their contract, and one or more for each clause that break it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from siegebench.types import (
    InputDetector,
    ModelDetector,
    Scorer,
    TrainedDetector,
    Verdict,
)


@dataclass(frozen=True, kw_only=True)
class Confidence(InputDetector):
    """An honest detector."""

    def fit(self, model, data, draws):
        return lambda x, d: model(x).detach().softmax(dim=1).amax(dim=1)


class ScoresNaN(Confidence):
    def fit(self, model, data, draws):
        return lambda x, d: super(ScoresNaN, self).fit(model, data, draws)(x, d).log() * float("nan")


class OneScore(Confidence):
    def fit(self, model, data, draws):
        return lambda x, d: super(OneScore, self).fit(model, data, draws)(x, d).mean()


class PeeksAtTraining(Confidence):
    def fit(self, model, data, draws):
        return super().fit(model, data.train, draws)


class ScoresByChance(Confidence):
    def fit(self, model, data, draws):
        return lambda x, d: torch.rand(len(x))


class TrainsTheModel(Confidence):
    def fit(self, model, data, draws):
        model.train()
        return super().fit(model, data, draws)


class RanksTheBatch(Confidence):
    def fit(self, model, data, draws):
        return lambda x, d: super(RanksTheBatch, self).fit(model, data, draws)(x, d).argsort().argsort().float()


class OffersNoGradient(Confidence):
    def fit(self, model, data, draws):
        return Scorer(super().fit(model, data, draws))


class RoundsItsGradientAway(Confidence):
    def fit(self, model, data, draws):
        score = super().fit(model, data, draws)
        return Scorer(score, lambda x, d: model(x).round().sum(dim=1))


class Learns(TrainedDetector):
    """An honest detector that trains a network."""

    def network(self, data):
        return nn.utils.skip_init(nn.Linear, 1, 1)  # draws no random numbers

    def train(self, network, data, draws):
        network.bias.data.fill_(2.0)

    def scorer(self, network, model, data, draws):
        return lambda x, d: x.mean(dim=(1, 2, 3)) * network.bias.detach()


class LearnsAside(Learns):
    def train(self, network, data, draws):
        network.learnt = 2.0  # no parameter and no buffer

    def scorer(self, network, model, data, draws):
        return lambda x, d: x.mean(dim=(1, 2, 3)) * getattr(network, "learnt", 1.0)


@dataclass(frozen=True, kw_only=True)
class Judges(ModelDetector):
    verdict: Verdict = field(default_factory=lambda: Verdict(0.5, False))

    def judge(self, model, data, draws):
        return self.verdict


HONEST = [
    ("detector", Confidence()),
    ("detector", Learns()),
    ("detector", Judges()),
]


BROKEN = [
    ("detector", ScoresNaN(), "gives finite scores from the data its card declares", "not finite"),
    ("detector", OneScore(), "gives finite scores from the data its card declares", "expected (12,)"),
    ("detector", PeeksAtTraining(), "gives finite scores from the data its card declares", "reads 'train'"),
    ("detector", ScoresByChance(), "scores the same for the same draws", "torch"),
    ("detector", LearnsAside(), "keeps what it learns in its network", "other scores"),
    ("detector", TrainsTheModel(), "leaves the judged model as found", "modes"),
    ("detector", RanksTheBatch(), "scores an input alone as in a batch", "alone scores"),
    ("detector", OffersNoGradient(), "lets gradients through if it offers them", "without a gradient"),
    ("detector", RoundsItsGradientAway(), "lets gradients through if it offers them", "zero for 12 of 12"),
    ("detector", Judges(verdict=Verdict(0.5, np.True_)), "gives a well formed verdict", "expected bool"),
    ("detector", Judges(verdict=Verdict(0.5, True, (10,))), "gives a well formed verdict", "not a class"),
]
