"""Noise theft: a copy trained on the victim's answers to noise, without any real image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.threat import Access
from siegebench.types import Attacker, Count, Positive, Share, Theft


@dataclass(frozen=True, kw_only=True)
class NoiseTheft(Theft):
    """Query random images, x ~ Bernoulli(p) for each cell of pixels, and train a copy on the answers.

    Roberts, Prabhu, McAteer, "Model Weight Theft With Just Noise Inputs: The Curious Case of the Petulant Attacker",
    arXiv 1912.08987. With `kind: ising` neighbouring cells are correlated: spins of a two-dimensional Ising model with
    periodic edges, from `sweeps` sweeps of Gibbs sampling over the two colours of a chess board.

    Random: the images, the weights of the copy before training, and the order of its batches. Images are not augmented.

    Differs from the paper: we do not know its probability, budget, loss and temperature; those here are ours. The
    attacker of the paper knows the victim's architecture; here the board says which network the copy is.

    Attributes:
        kind: bernoulli (white with probability p, else black), uniform (any grey level) or ising (black or white).
        p: probability of white; only for bernoulli.
        temperature: of the Ising model; neighbours agree below 2.27.
        sweeps: of the Gibbs sampler.
        cell: side of the squares of pixels that get one value.
        grey: give all channels the same value.
        labels: use only the victim's top-1 class.
    """

    kind: Literal["bernoulli", "uniform", "ising"] = "bernoulli"
    p: Share = 0.3
    temperature: Positive = 2.5
    sweeps: Count = 20
    cell: Count = 1
    grey: bool = False
    labels: bool = False

    def access(self) -> Access:
        return "label" if self.labels else "score"

    def run(self, oracle: Oracle, attacker: Attacker, draws: Draws) -> Classifier:
        x = self.noise(draws, attacker.shape)
        return attacker.fit(x, self.ask(oracle, x), draws.seed, False)

    def noise(self, draws: Draws, shape: tuple[int, int, int]) -> Tensor:
        """One image for each stream, [n, C, H, W] in [0, 1]."""
        channels, height, width = shape
        size = (1 if self.grey else channels, -(-height // self.cell), -(-width // self.cell))
        if self.kind == "ising":
            cells = (self._spins(draws, size) + 1) / 2
        else:
            u = draws.uniform(size, purpose="noise")
            cells = u if self.kind == "uniform" else (u < self.p).float()
        x = cells.repeat_interleave(self.cell, dim=2).repeat_interleave(self.cell, dim=3)[..., :height, :width]
        return x.expand(-1, channels, -1, -1).contiguous()

    def _spins(self, draws: Draws, size: tuple[int, int, int]) -> Tensor:
        """Spins -1 and 1 [n, *size]: P(s = 1) = 1 / (1 + exp(-2 m / T)), m the sum of the four neighbours."""
        s = draws.sign(size, purpose="start")
        black = (torch.arange(size[1])[:, None] + torch.arange(size[2])) % 2 == 0
        for sweep in range(self.sweeps):
            u = draws.uniform(size, sweep, "gibbs")
            for colour in (black, ~black):
                m = s.roll(1, 2) + s.roll(-1, 2) + s.roll(1, 3) + s.roll(-1, 3)
                up = u < torch.sigmoid(2 * m / self.temperature)
                s = torch.where(colour, 2 * up.float() - 1, s)
        return s
