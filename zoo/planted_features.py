"""Planted features: two latent numbers that predict the class, of known predictivity and availability."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from siegebench.data import GREY, ImageSet
from siegebench.draws import Draws, derive_seed
from siegebench.errors import ConfigError
from siegebench.types import Count, DataSource, Positive, Share

SIDE = 10  # of the images: D = 100 numbers
WIDTH = 8  # numbers that a feature is written in before it is embedded
SCALE = 16.0  # x is stored as 1/2 + x / 16
PROBED = 3.0  # |z| of probes is uniform in [0, 3]
NAMES = ("negative", "positive")
Depth = Annotated[int, Field(ge=0, strict=True)]


@dataclass(frozen=True, kw_only=True)
class PlantedFeatures(DataSource):
    """x = sum_i alpha_i W_i v_i(z_i) + noise in R^100, as grey images of 10x10 pixels; i is the core or the cue.

    After Hermann, Mobahi, Fel, Mozer, "On the Foundations of Shortcut Learning", ICLR 2024, arXiv 2310.16228: y = +-1,
    z_i | y ~ N(y m_i, 1) with Phi(m_i) the predictivity of feature i. A feature is more available when it is amplified
    (alpha_cue = `availability`, alpha_core = 1) or nested less: v is a random tanh network from R to R^8, standardised;
    without layers it is one direction. The W_i are orthonormal.

    The splits `core`, `cue` and `ideal` have the same images, probes in which the features disagree: sign z_core is the
    opposite of sign z_cue, both of size uniform in [0, 3]. Their labels are the class according to the core,
    according to the cue, and according to linear discriminant analysis of (z_core, z_cue), the best possible
    decision. The measure `shortcut_bias` uses these splits.

    Random: everything, from `seed`.

    Differs from the paper: the text of the paper was not available; distributions, embedding and numbers are ours.

    Attributes:
        core, cue: predictivity of each feature, above 1/2.
        availability: amplification of the cue, with 1 for the core.
        nesting: layers of the random network of the core.
        cue_nesting: the same of the cue.
        noise: standard deviation of the noise of each of the 100 numbers.
        count: number of training images; a quarter of it are test images, and probes.
        seed: of all random numbers.
    """

    core: Share = 0.9
    cue: Share = 0.8
    availability: Positive = 1.0
    nesting: Depth = 0
    cue_nesting: Depth = 0
    noise: Positive = 0.1
    count: Count = 4000
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in (("core", self.core), ("cue", self.cue)):
            if not 0.5 < value < 1:
                raise ConfigError(f"planted_features: {name} is {value}; a predictivity is above 0.5 and below 1")

    def known_splits(self) -> tuple[str, ...]:
        return ("train", "test", "core", "cue", "ideal")

    def load(self, split: str) -> ImageSet:
        if split not in self.known_splits():
            raise self.no_split("planted_features", split)
        probed = split not in ("train", "test")
        n = self.count if split == "train" else max(4, self.count // 4)
        draws = Draws(derive_seed(self.seed, "probes" if probed else split), torch.arange(n))
        means = torch.special.ndtri(torch.tensor([self.core, self.cue], dtype=torch.float64)).float()
        if probed:
            sign = 2 * (draws.ids % 2).float() - 1  # of the core
            z = torch.stack([sign, -sign], dim=1) * PROBED * draws.uniform((2,), purpose="size")
            said = {"core": z[:, 0], "cue": z[:, 1], "ideal": z @ means}[split]
        else:
            said = 2 * (draws.ids % 2).float() - 1
            z = said[:, None] * means + draws.normal((2,), purpose="latent")
        x = self._embedded(z) + self.noise * draws.normal((SIDE * SIDE,), purpose="noise")
        images = GREY.store((0.5 + x / SCALE).clamp(0, 1).view(n, 1, SIDE, SIDE))
        name = f"planted_features {split}"
        return ImageSet(images, (said > 0).long(), draws.ids, 2, name, kind=GREY, classes=NAMES)

    def _embedded(self, z: Tensor) -> Tensor:
        """sum_i alpha_i W_i v_i(z_i) of latents [n, 2], [n, 100]."""
        axes = Draws(derive_seed(self.seed, "axes"), torch.arange(SIDE * SIDE)).normal((2 * WIDTH,))
        w = torch.linalg.qr(axes.double())[0].float().split(WIDTH, dim=1)
        core = written(z[:, 0], self.nesting, derive_seed(self.seed, "core")) @ w[0].T
        return core + self.availability * written(z[:, 1], self.cue_nesting, derive_seed(self.seed, "cue")) @ w[1].T


def written(z: Tensor, layers: int, seed: int) -> Tensor:
    """v(z) of latents [n], [n, 8]: mean 0 and total variance 1 over N(0, 2)."""

    def v(t: Tensor) -> Tensor:
        h = t[:, None].double()
        for layer in range(layers):
            draws = Draws(derive_seed(seed, layer), torch.arange(h.shape[1]))
            bias = Draws(derive_seed(seed, layer, "bias"), torch.arange(WIDTH)).normal().double()
            h = (h @ draws.normal((WIDTH,)).double() * (2 / h.shape[1]) ** 0.5 + bias / 2).tanh()
        return h

    spread = 2**0.5 * torch.special.ndtri((torch.arange(999, dtype=torch.float64) + 1) / 1000)
    seen = v(spread)
    out = (v(z) - seen.mean(dim=0)) / seen.var(dim=0).sum().sqrt()
    return torch.nn.functional.pad(out, (0, WIDTH - out.shape[1])).float()
