"""Jacobian-based theft: a few real images, augmented along the gradients of the copy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.threat import Access
from siegebench.types import Attacker, Count, Positive, Theft


@dataclass(frozen=True, kw_only=True)
class Jacobian(Theft):
    """Jacobian-based data set augmentation: x' = x + lambda sign(d z_c(x)_y / d x), z_c the copy, y the victim's class.

    Papernot, McDaniel, Goodfellow, Jha, Celik, Swami, "Practical Black-Box Attacks against Machine Learning", ASIA CCS
    2017, arXiv 1602.02697. The thief starts from a few images of the victim's own data, without their labels. In each
    round it trains a copy, moves the images, and queries the moved ones. The sign of lambda alternates. From round
    `reservoir` on only `kept` of the images are moved.

    Random: the images that it starts from, those that are kept, the weights of the copy and the order of its batches.

    Differs from the paper: the copy is trained from new weights in every round, with the recipe of its network. Moved
    images are rounded to 8 bits. Rounds end when the budget is spent, so that the queries of a smaller budget are a
    prefix of those of a larger one.

    Attributes:
        seeds: number of images that it starts from.
        rounds: of augmentation.
        step: lambda, in pixel values.
        period: number of rounds after which the sign of lambda changes.
        reservoir: first round in which images are sampled.
        kept: number of images that such a round moves.
        labels: use only the victim's top-1 class.
    """

    seeds: Count = 150
    rounds: Count = 6
    step: Positive = 0.1
    period: Count = 1
    reservoir: Count = 3
    kept: Count = 400
    labels: bool = False

    def access(self) -> Access:
        return "label" if self.labels else "score"

    def run(self, oracle: Oracle, attacker: Attacker, draws: Draws) -> Classifier:
        own = attacker.own.clean
        start = Draws(draws.seed, own.ids).order("seeds")[: min(self.seeds, len(oracle))]
        x = own.pixels(start)
        answers = self.ask(oracle[: len(x)], x)
        copy = attacker.fit(x, answers, draws.seed, False)
        for r in range(1, self.rounds + 1):
            moved = torch.arange(len(x))
            if r >= self.reservoir and len(x) > self.kept:
                moved = draws[: len(x)].order(f"kept {r}")[: self.kept]
            moved = moved[: len(oracle) - len(x)]
            if len(moved) == 0:
                break
            sign = 1.0 if ((r - 1) // self.period) % 2 == 0 else -1.0
            new = self._moved(copy, x[moved], answers[moved].argmax(dim=1), sign)
            asked = self.ask(oracle[len(x) : len(x) + len(new)], new)
            x, answers = torch.cat([x, new]), torch.cat([answers, asked])
            copy = attacker.fit(x, answers, draws.seed, False)
        return copy

    def _moved(self, copy: Classifier, x: Tensor, y: Tensor, sign: float) -> Tensor:
        """x + sign lambda sign(d z_y / d x), in [0, 1] and 8 bits."""
        out = []
        for part in torch.arange(len(x)).split(256):
            leaf = x[part].to(y.device).requires_grad_(True)
            z = copy(leaf).gather(1, y[part.to(y.device)][:, None])
            (g,) = torch.autograd.grad(z.sum(), leaf)
            out.append((x[part] + sign * self.step * g.sign().to(x.device)).clamp(0, 1))
        return torch.round(255 * torch.cat(out)) / 255
