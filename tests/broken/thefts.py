"""A theft that keeps its contract, and one or more for each clause that break it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import one_hot

from siegebench.types import Theft


@dataclass(frozen=True, kw_only=True)
class Asks(Theft):
    """An honest theft, to be broken below: uniform noise, scores."""

    def x(self, draws, shape):
        return draws.uniform(shape)

    def run(self, oracle, attacker, draws):
        x = self.x(draws, attacker.shape)
        return attacker.fit(x, self.ask(oracle, x), draws.seed, False)


class WithLabels(Asks):
    needs: ClassVar[str] = "label"

    def run(self, oracle, attacker, draws):
        x = self.x(draws, attacker.shape)
        return attacker.fit(x, oracle.logits(x).softmax(1), draws.seed, False)


class Twice(Asks):
    def run(self, oracle, attacker, draws):
        self.ask(oracle, self.x(draws, attacker.shape))
        return super().run(oracle, attacker, draws)


class OneSlotForAll(Asks):
    def run(self, oracle, attacker, draws):
        x = self.x(draws, attacker.shape)
        return attacker.fit(x, oracle[torch.zeros(len(x), dtype=torch.long)].logits(x).softmax(1), draws.seed, False)


class ManyOfOneSlot(Asks):
    def run(self, oracle, attacker, draws):
        x = self.x(draws, attacker.shape)
        return attacker.fit(x, oracle[:1].logits(x).softmax(1), draws.seed, False)


class Repeats(Asks):
    def run(self, oracle, attacker, draws):
        x = self.x(draws, attacker.shape)
        answers = oracle.repeat(2).logits(x.repeat_interleave(2, 0))[::2]
        return attacker.fit(x, answers.softmax(1), draws.seed, False)


class AroundTheOracle(Asks):
    def run(self, oracle, attacker, draws):
        x = self.x(draws, attacker.shape)
        return attacker.fit(x, oracle.model(x).softmax(1), draws.seed, False)


class GivesTheVictim(Asks):
    def run(self, oracle, attacker, draws):
        self.ask(oracle, self.x(draws, attacker.shape))
        return oracle.model


class StillTraining(Asks):
    def run(self, oracle, attacker, draws):
        return super().run(oracle, attacker, draws).train()


class NotANumber(Asks):
    def run(self, oracle, attacker, draws):
        copy = super().run(oracle, attacker, draws)
        next(copy.parameters()).data.fill_(torch.nan)
        return copy


class NeedsMore(Asks):
    def images(self, queries):
        return queries


class ByChance(Asks):
    def x(self, draws, shape):
        return torch.rand(len(draws), *shape)


class ByTheBudget(Asks):
    def x(self, draws, shape):
        return draws.uniform(shape) * len(draws) / 60


class Edits(Asks):
    def run(self, oracle, attacker, draws):
        next(oracle.model.parameters()).data.add_(1)
        return super().run(oracle, attacker, draws)


class Ignores(Asks):
    def run(self, oracle, attacker, draws):
        x = self.x(draws, attacker.shape)
        self.ask(oracle, x)
        answers = one_hot(torch.zeros(len(x), dtype=torch.long), oracle.num_classes)
        return attacker.fit(x, answers, draws.seed, False)


HONEST = [("theft", Asks())]

FIRST = "returns a copy with the access it declares"
ONCE = "asks each slot once at most"

BROKEN = [
    ("theft", WithLabels(), FIRST, "grants labels only"),
    ("theft", Twice(), FIRST, "1 queries granted, 1 spent, 1 more requested"),
    ("theft", OneSlotForAll(), FIRST, "names a sample twice"),
    ("theft", ManyOfOneSlot(), FIRST, "1 queries granted, 0 spent, 30 more requested"),
    ("theft", Repeats(), FIRST, "1 queries granted, 0 spent, 2 more requested"),
    ("theft", GivesTheVictim(), FIRST, "shares"),
    ("theft", StillTraining(), FIRST, "in training mode"),
    ("theft", NotANumber(), FIRST, "are not all finite"),
    ("theft", AroundTheOracle(), ONCE, "needs score access, and asked 0 times"),
    ("theft", NeedsMore(), "says how many images of the pool it needs", "declares pooled = False"),
    ("theft", ByChance(), "makes the same copy for the same draws", "torch"),
    ("theft", ByTheBudget(), "asks the same images first with a smaller budget", "other images than first"),
    ("theft", Edits(), "leaves the victim as found", "changed weights"),
    ("theft", Ignores(), "depends on the answers", "gave the same copy"),
]
