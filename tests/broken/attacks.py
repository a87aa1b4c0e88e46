"""Attacks that keep their contract, and one or more for each clause that break it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from siegebench import ops
from siegebench.draws import Draws
from siegebench.types import (
    Attack,
)


@dataclass(frozen=True, kw_only=True)
class FGSM(Attack):
    """An honest attack, to be broken below."""

    def run(self, oracle, x, y, threat, draws):
        g, _, _ = oracle.gradient(x, lambda z: ops.margin(z, y))
        return threat.project(x + threat.eps * g.sign(), x)


class Exceeds(FGSM):
    def run(self, oracle, x, y, threat, draws):
        return (x + 1.01 * (super().run(oracle, x, y, threat, draws) - x)).clamp(0, 1)


class LeavesTheBox(FGSM):
    def run(self, oracle, x, y, threat, draws):
        g, _, _ = oracle.gradient(x, lambda z: ops.margin(z, y))
        return x + threat.eps * g.sign()


class ReturnsNaN(FGSM):
    def run(self, oracle, x, y, threat, draws):
        return super().run(oracle, x, y, threat, draws) / 0 * 0


class ReturnsFloat32(FGSM):
    def run(self, oracle, x, y, threat, draws):
        return super().run(oracle, x, y, threat, draws).float()


class SaysThatItAims(FGSM):
    aims: ClassVar[bool] = True


class SaysThatItStarts(FGSM):
    starts: ClassVar[bool] = True

    def run(self, oracle, x, y, threat, draws):
        return x if oracle.start is not None else super().run(oracle, x, y, threat, draws)


class AsksForMore(FGSM):
    needs: ClassVar[Any] = "score"


class MovesAtZero(FGSM):
    def run(self, oracle, x, y, threat, draws):
        return (super().run(oracle, x, y, threat, draws) + 5e-7).clamp(0, 1)


class UsesTorchRand(FGSM):
    def run(self, oracle, x, y, threat, draws):
        start = threat.project(x + threat.eps * torch.randn_like(x), x)
        return super().run(oracle, start, y, threat, draws).clamp(x - threat.eps, x + threat.eps)


class UsesNumpy(FGSM):
    def run(self, oracle, x, y, threat, draws):
        np.random.rand()
        return super().run(oracle, x, y, threat, draws)


class UsesEntropy(FGSM):
    def run(self, oracle, x, y, threat, draws):
        noise = Draws.fresh(len(x)).sign(tuple(x.shape[1:])).to(x.dtype)
        return threat.project(x + threat.eps * noise, x)


class PeeksAtNeighbours(FGSM):
    def run(self, oracle, x, y, threat, draws):
        g, _, _ = oracle.gradient(x, lambda z: ops.margin(z, y))
        return threat.project(x + threat.eps * (g / g.abs().max()), x)


class CountsPlaces(FGSM):
    def run(self, oracle, x, y, threat, draws):
        noise = Draws(draws.seed, torch.arange(len(x))).sign(tuple(x.shape[1:])).to(x.dtype)
        return threat.project(x + threat.eps * noise, x)


class CountsCalls(FGSM):
    """Its loss changes with each call, not with the logits alone."""

    def run(self, oracle, x, y, threat, draws):
        calls = []

        def loss(z):
            calls.append(len(z))
            return (-1) ** (len(calls) - 1) * ops.margin(z, y)

        g, _, _ = oracle.gradient(x, loss)
        return threat.project(x + threat.eps * g.sign(), x)


class SwitchesToTraining(FGSM):
    def run(self, oracle, x, y, threat, draws):
        out = super().run(oracle, x, y, threat, draws)
        oracle.model.train()
        return out


class UpdatesBatchNorm(FGSM):
    def run(self, oracle, x, y, threat, draws):
        oracle.model.train()
        out = super().run(oracle, x, y, threat, draws)
        oracle.model.eval()
        return out


class LeavesAHook(FGSM):
    def run(self, oracle, x, y, threat, draws):
        next(oracle.model.children()).register_forward_hook(lambda *_: None)
        return super().run(oracle, x, y, threat, draws)


class WritesIntoTheImages(FGSM):
    def run(self, oracle, x, y, threat, draws):
        return x.copy_(super().run(oracle, x.clone(), y, threat, draws))


class ChecksNothing(FGSM):
    def __call__(self, oracle, x, y, threat, draws, lesson=None):
        return self.run(oracle, x, y, threat, draws) if threat.access == "gradient" else x


@dataclass(frozen=True, kw_only=True)
class AsksTooOften(Attack):
    needs: ClassVar[Any] = "score"

    def run(self, oracle, x, y, threat, draws):
        for _ in range(40):
            oracle.logits(x)
        return x


class GoesAroundTheOracle(FGSM):
    def run(self, oracle, x, y, threat, draws):
        leaf = x.clone().requires_grad_(True)
        (g,) = torch.autograd.grad(ops.margin(oracle.model(leaf), y).sum(), leaf)
        return threat.project(x + threat.eps * g.sign(), x)


class FollowsWhatIsLeft(FGSM):
    """Its loss has a remainder that points the wrong way once the cross-entropy is flat."""

    def run(self, oracle, x, y, threat, draws):
        g, _, _ = oracle.gradient(x, lambda z: ops.cross_entropy(z, y) - 1e-9 * ops.margin(z, y))
        return threat.project(x + threat.eps * g.sign(), x)


class Descends(FGSM):
    def run(self, oracle, x, y, threat, draws):
        return threat.project(2 * x - super().run(oracle, x, y, threat, draws), x)


HONEST = [
    ("attack", FGSM()),
]


BROKEN = [
    ("attack", Exceeds(), "returns images of the right shape range and budget", "budget"),
    ("attack", LeavesTheBox(), "returns images of the right shape range and budget", "not in [0, 1]"),
    ("attack", ReturnsNaN(), "returns images of the right shape range and budget", "NaN"),
    ("attack", ReturnsFloat32(), "returns images of the right shape range and budget", "float32"),
    ("attack", AsksForMore(), "returns images of the right shape range and budget", "asked for a gradient"),
    ("attack", MovesAtZero(), "changes nothing at eps 0", "5e-07"),
    ("attack", UsesTorchRand(), "gives the same result for the same draws", "generator of torch"),
    ("attack", UsesNumpy(), "gives the same result for the same draws", "generator of numpy"),
    ("attack", UsesEntropy(), "gives the same result for the same draws", "other images"),
    ("attack", PeeksAtNeighbours(), "treats a sample alone as in a batch", "alone"),
    ("attack", CountsPlaces(), "treats a sample alone as in a batch", "in reverse order"),
    ("attack", CountsCalls(), "finds the same when the model gets a pass in parts", "gets another result"),
    ("attack", SwitchesToTraining(), "leaves the model as found", "modes"),
    ("attack", UpdatesBatchNorm(), "leaves the model as found", "weights"),
    ("attack", LeavesAHook(), "leaves the model as found", "hooks"),
    ("attack", WritesIntoTheImages(), "leaves the images as found", "in place"),
    ("attack", ChecksNothing(), "is refused with less access than it needs", "ran with score access"),
    ("attack", AsksTooOften(), "keeps the query budget", "37 queries granted"),
    ("attack", GoesAroundTheOracle(), "books its passes", "no forward pass"),
    ("attack", Descends(), "breaks a half space near its closed form", "0 of 4 misclassified at 1.5"),
    (
        "attack",
        FollowsWhatIsLeft(),
        "breaks the same half space behind scaled logits or shows that it is blind",
        "0 of 4 misclassified with scaled logits",
    ),
    ("attack", SaysThatItAims(), "aims at the class it is told", "moved towards the class"),
    ("attack", SaysThatItStarts(), "starts from the points it is given", "0 of 4 misclassified, started from"),
]
