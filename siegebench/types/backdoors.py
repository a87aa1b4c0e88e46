"""Backdoor attacks and other poisoning of a training set."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, final

import torch
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.data import IMAGE, ImageSet, Kind
from siegebench.draws import Draws
from siegebench.errors import ContractError, NotApplicable
from siegebench.types.base import Class, Entry, Share

STAMPED = 2**22  # pixel values that are triggered at a time


@dataclass(frozen=True, eq=False)
class Poisoned:
    """A poisoned training set and the indices of the poisoned images, which only the evaluator uses."""

    data: ImageSet
    index: Tensor  # of the poisoned images, sorted


class Poisoning(Entry):
    """Changes a training set. With a trigger it is a BackdoorAttack; without one it lowers the accuracy of a victim."""

    @abstractmethod
    def poison(self, data: ImageSet, seed: int, surrogate: Classifier | None = None) -> Poisoned:
        """A changed copy of a training set, and which images were changed. The source does not change.

        Args:
            seed: of all randomness.
            surrogate: an untrained network of the attacker's own, for poisons that are made with one.
        """


@dataclass(frozen=True, kw_only=True)
class BackdoorAttack(Poisoning):
    """Poisons a fraction of the training set so that a trigger controls the prediction.

    Attributes:
        rate: fraction of the whole training set that is poisoned (also for clean-label attacks).
        target: label map. A class for all-to-one, `next` for all-to-all (y + 1), or `{source: target}` pairs.
    """

    clean_label: ClassVar[bool] = False  # poisons images of the target class only and keeps their labels

    rate: Share = 0.1
    target: Class | Literal["next"] | dict[Class, Class] = 0

    @abstractmethod
    def trigger(self, x: Tensor, draws: Draws) -> Tensor:
        """Images with the trigger, [n, 3, H, W] in [0, 1]. Must not change x."""

    def wanted(self, y: Tensor, num_classes: int) -> Tensor:
        """The attacker's target label for each true label; -1 for classes that are not in the map."""
        if self.target == "next":
            return (y + 1) % num_classes
        if isinstance(self.target, int):
            return torch.full_like(y, self.target)
        table = torch.full((num_classes,), -1, dtype=torch.long, device=y.device)
        for source, target in self.target.items():
            table[source] = target
        return table[y]

    @final
    def eligible(self, data: ImageSet) -> Tensor:
        """Indices of the images that may be poisoned, at least as many as `rate` requires.

        Raises:
            ContractError: when a target is not one of the classes.
            NotApplicable: when fewer images are eligible than the rate requires.
        """
        self.check(data.num_classes)
        wanted = self.wanted(data.labels, data.num_classes)
        fits = (wanted == data.labels) if self.clean_label else torch.ones_like(wanted, dtype=torch.bool)
        pool = ((wanted >= 0) & fits).nonzero().squeeze(1)
        count = round(self.rate * len(data))
        if count > len(pool):
            raise NotApplicable(
                f"{self!r}: {count} of {len(data)} images to poison, {len(pool)} eligible; "
                f"at most rate {math.floor(1000 * len(pool) / len(data)) / 1000:.3f}"
            )
        return pool

    @final
    def poison(self, data: ImageSet, seed: int, surrogate: Classifier | None = None) -> Poisoned:
        """Replace `rate` of the images by triggered ones, with the labels of the map. The source stays unchanged.

        Raises:
            ContractError, NotApplicable: as `eligible` does; also when the rate poisons no image.
        """
        pool = self.eligible(data)
        wanted = self.wanted(data.labels, data.num_classes)
        count = round(self.rate * len(data))
        if count == 0 and self.rate > 0:
            raise NotApplicable(
                f"{type(self).__name__}: rate {self.rate:g} of {len(data)} training images poisons none of them; set a "
                f"rate of at least {math.ceil(1000 / len(data)) / 1000:g}, or give more images"
            )
        draws = Draws(seed, data.ids)
        order = Draws(seed, data.ids[pool]).order("poison")
        index = pool[order[:count]].sort().values
        source, labels = data.stored, data.labels.clone()
        if count:
            changed = torch.empty(count, *data.shape, dtype=data.kind.dtype)
            for part in torch.arange(count).split(max(1, STAMPED // math.prod(data.shape))):
                rows = index[part]
                changed[part] = data.kind.store(self.stamp(data.pixels(rows), draws[rows], data.kind))
            source = source.replaced(index, changed)  # the other images are shared with the source
            labels[index] = wanted[index]
        return Poisoned(replace(data, source=source, labels=labels, name=f"{data.name} poisoned"), index)

    @final
    def stamp(self, x: Tensor, draws: Draws, kind: Kind = IMAGE) -> Tensor:
        """`trigger`, with a check of its contract."""
        before = x.clone()
        out = self.trigger(x, draws)
        if not torch.equal(before, x):
            raise ContractError(f"{self!r}: trigger changed its input in place")
        if out.shape != x.shape or out.dtype != x.dtype or not bool(kind.inside(out).all()):
            raise ContractError(f"{self!r}: trigger must return {x.dtype} {tuple(x.shape)} in {kind.box}")
        return out

    def check(self, num_classes: int) -> None:
        """Refuse targets outside the classes.

        Raises:
            ContractError: naming the class.
        """
        if self.target == "next":
            used: set[int] = set()
        else:
            used = {self.target} if isinstance(self.target, int) else {*self.target.keys(), *self.target.values()}
        bad = [c for c in used if not 0 <= c < num_classes]
        if bad:
            raise ContractError(f"{self!r}: class {bad[0]} does not exist, the dataset has 0..{num_classes - 1}")
