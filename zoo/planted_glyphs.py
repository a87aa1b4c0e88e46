"""Planted glyphs: a core shape and a cue shape in one image, whose sizes say how available they are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from siegebench.data import GREY, ImageSet
from siegebench.draws import Draws, derive_seed
from siegebench.errors import ConfigError
from siegebench.types import Count, DataSource, Share

SIDE = 32
NAMES = ("negative", "positive")


@dataclass(frozen=True, kw_only=True)
class PlantedGlyphs(DataSource):
    """Grey images with two glyphs at random places: the core, a bar that lies or stands, and the cue, a ring or a disc.

    The image form of `planted_features`, after Hermann, Mobahi, Fel, Mozer, "On the Foundations of Shortcut Learning",
    ICLR 2024, arXiv 2310.16228, who find that a ResNet-18 prefers the feature with more pixels. Each glyph shows the
    class with the probability that is its predictivity. The splits `core`, `cue` and `ideal` have the same images, in
    which the two glyphs disagree; their labels are the class according to the core, according to the cue, and
    according to the more predictive of the two. The measure `shortcut_bias` uses these splits.

    Random: everything, from `seed`.

    Differs from the paper: the glyphs, sizes and numbers are ours.

    Attributes:
        core, cue: predictivity of each glyph, above 1/2.
        core_side, cue_side: side of the square around each glyph in pixels, 5 to 15.
        noise: standard deviation of the noise of each pixel.
        count: number of training images; a quarter of it are test images, and probes.
        seed: of all random numbers.
    """

    core: Share = 0.9
    cue: Share = 0.8
    core_side: Count = 9
    cue_side: Count = 9
    noise: Share = 0.05
    count: Count = 4000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("core", "cue"):
            if not 0.5 < getattr(self, name) <= 1:
                raise ConfigError(f"planted_glyphs: {name} is {getattr(self, name)}; a predictivity is above 0.5")
            side = getattr(self, f"{name}_side")
            if not 5 <= side <= SIDE // 2 - 1:
                raise ConfigError(f"planted_glyphs: {name}_side is {side}; expected 5 to {SIDE // 2 - 1} pixels")

    def known_splits(self) -> tuple[str, ...]:
        return ("train", "test", "core", "cue", "ideal")

    def load(self, split: str) -> ImageSet:
        if split not in self.known_splits():
            raise self.no_split("planted_glyphs", split)
        probed = split not in ("train", "test")
        n = self.count if split == "train" else max(4, self.count // 4)
        draws = Draws(derive_seed(self.seed, "probes" if probed else split), torch.arange(n))
        y = draws.ids % 2
        if probed:
            core, cue = y, 1 - y
            y = {"core": core, "cue": cue, "ideal": core if self.core >= self.cue else cue}[split]
        else:
            said = draws.uniform((2,), purpose="said") < torch.tensor([self.core, self.cue])
            core, cue = torch.where(said, y[:, None], 1 - y[:, None]).unbind(dim=1)
        x = self._drawn(core, cue, draws)
        x = (x + self.noise * draws.normal((SIDE, SIDE), purpose="noise")).clamp(0, 1)
        return ImageSet(GREY.store(x[:, None]), y, draws.ids, 2, f"planted_glyphs {split}", kind=GREY, classes=NAMES)

    def _drawn(self, core: Tensor, cue: Tensor, draws: Draws) -> Tensor:
        """Both glyphs on grey ground, in two halves of the image, [n, 32, 32]."""
        left = draws.integers(2, purpose="half")  # which glyph is in the left half
        x = torch.full((len(core), SIDE, SIDE), 0.2)
        for i, (glyph, side) in enumerate(((bar(core, self.core_side), self.core_side),
                                           (disc(cue, self.cue_side), self.cue_side))):  # fmt: skip
            room = torch.tensor([SIDE - side + 1, SIDE // 2 - side + 1])
            corner = draws.integers(room, (2,), purpose=f"place {i}")
            corner[:, 1] += SIDE // 2 * ((left + i) % 2)
            at = torch.arange(side)
            rows = (corner[:, 0, None] + at)[:, :, None]
            columns = (corner[:, 1, None] + at)[:, None, :]
            x[torch.arange(len(x))[:, None, None], rows, columns] += 0.6 * glyph
        return x


def bar(sign: Tensor, side: int) -> Tensor:
    """A bar through the middle, lying for 0 and standing for 1, [n, side, side]."""
    middle = (torch.arange(side) - (side - 1) / 2).abs() <= side / 6
    lying = middle[:, None].expand(side, side).float()
    return torch.where(sign[:, None, None] == 0, lying, lying.T)


def disc(sign: Tensor, side: int) -> Tensor:
    """A ring for 0 and a disc for 1, of equally many pixels or nearly so, [n, side, side]."""
    at = torch.arange(side) - (side - 1) / 2
    r = (at[:, None].square() + at.square()).sqrt() / (side / 2)
    ring, full = ((r <= 1) & (r > 0.5**0.5)).float(), (r <= 0.5**0.5).float()
    return torch.where(sign[:, None, None] == 0, ring, full)
