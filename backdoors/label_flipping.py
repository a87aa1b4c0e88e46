"""Label flipping: wrong labels in the training set, images untouched."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.errors import ConfigError, ContractError, NotApplicable
from siegebench.train import Recipe, predict
from siegebench.types import Class, Material, Poisoned, Poisoning, Share, Source

from . import _surrogate

RECIPE = Recipe()


@dataclass(frozen=True, kw_only=True)
class LabelFlipping(Poisoning):
    """Give round(rate N) training images a wrong label; the images stay as they are.

    Random: which images are flipped (except for `margin`), the labels of `uniform`, and the training of the network
    that `near` and `margin` use.

    Cost: nothing; for `near` and `margin` one training of a network.

    Attributes:
        rate: fraction of the training set whose labels become wrong.
        mode: `uniform`: one of the other classes, all with equal probability. `next`: y + 1. `pair`: targeted, as
            `pairs` says. `near`: the most likely wrong class of a network that was trained on the clean set. `margin`:
            the same class, and those images first whose margin z_y - max z_k is smallest.
        pairs: for `pair`, the wrong label of each source class; other classes are not flipped.
        recipe: how the network of `near` and `margin` is trained.
    """

    rate: Share = 0.4
    mode: Literal["uniform", "next", "pair", "near", "margin"] = "uniform"
    pairs: dict[Source, Class] | None = None
    recipe: Recipe = RECIPE

    def __post_init__(self) -> None:
        if (self.mode == "pair") != (self.pairs is not None):
            raise ConfigError('label_flipping: `mode: pair` and `pairs: {"0": 8}` belong together')

    def learning(self) -> bool:
        return self.mode in ("near", "margin")

    def check(self, num_classes: int) -> None:
        bad = [c for pair in (self.pairs or {}).items() for c in pair if c >= num_classes]
        if bad:
            raise ContractError(f"{self!r}: class {bad[0]} does not exist, the dataset has 0..{num_classes - 1}")
        same = [c for c, to in (self.pairs or {}).items() if c == to]
        if same:
            raise ContractError(f"{self!r}: class {same[0]} is flipped to itself")

    def learn(self, data: ImageSet, seed: int, surrogate: Classifier) -> Material:
        z = predict(_surrogate.trained(surrogate, data, self.recipe, seed), data)
        own = z.gather(1, data.labels[:, None]).squeeze(1)
        other = z.scatter(1, data.labels[:, None], float("-inf")).max(dim=1)
        return {"ids": data.ids, "label": other.indices, "margin": own - other.values}

    def wrong(self, data: ImageSet, draws: Draws, material: Material | None) -> Tensor:
        """The wrong label of each image, [N]; -1 for images that are not flipped."""
        y, K = data.labels, data.num_classes
        if self.mode == "uniform":
            return (y + 1 + draws.integers(K - 1, purpose="flip")) % K
        if self.mode == "pair":
            table = torch.full((K,), -1, dtype=torch.long)
            for source, target in (self.pairs or {}).items():
                table[source] = target
            return table[y]
        return (y + 1) % K if material is None else _of(material, "label", data.ids)

    def poison(self, data: ImageSet, seed: int, material: Material | None = None) -> Poisoned:
        """Change the labels of `rate` of the images.

        Raises:
            ContractError: when a label is not one of the classes, or `near` has no material.
            NotApplicable: when fewer images have a class that is flipped than the rate requires.
        """
        self.check(data.num_classes)
        self.given(material)
        draws = Draws(seed, data.ids)
        wrong = self.wrong(data, draws, material if self.learning() else None)
        pool, count = (wrong >= 0).nonzero().squeeze(1), round(self.rate * len(data))
        if count > len(pool):
            raise NotApplicable(
                f"{self!r}: {count} of {len(data)} labels to flip, {len(pool)} eligible; "
                f"at most rate {math.floor(1000 * len(pool) / len(data)) / 1000:.3f}"
            )
        if self.mode == "margin":
            assert material is not None
            order = _of(material, "margin", data.ids)[pool].argsort(stable=True)
        else:
            order = Draws(seed, data.ids[pool]).order("flipped")
        index = pool[order[:count]].sort().values
        labels = data.labels.clone()
        labels[index] = wrong[index]
        return Poisoned(replace(data, labels=labels, name=f"{data.name} poisoned"), index, material=material)


def _of(material: Material, name: str, ids: Tensor) -> Tensor:
    """The values that the material keeps for these ids."""
    order = material["ids"].argsort()
    return material[name][order[torch.searchsorted(material["ids"][order], ids)]]
