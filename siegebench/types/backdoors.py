"""Backdoor attacks and other poisoning of a training set."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal, final

import torch
from pydantic import BeforeValidator
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.data import IMAGE, ImageSet, Kind
from siegebench.draws import Draws
from siegebench.errors import ContractError, NotApplicable
from siegebench.types.base import Class, Entry, Share

STAMPED = 2**22  # pixel values that are triggered at a time
Material = Mapping[str, Tensor]  # what a poisoning has made with a network: images, a pattern, weights of a generator
Role = Literal["test", "poison", "cover"]  # of an image that gets the trigger
# rows and cards are JSON, whose keys are text
Source = Annotated[Class, BeforeValidator(lambda k: int(k) if isinstance(k, str) and k.isdecimal() else k)]


@dataclass(frozen=True, eq=False)
class Poisoned:
    """A poisoned training set, and what only the evaluator uses.

    Attributes:
        data: the training set that the victim gets.
        index: of the poisoned images, sorted.
        cover: indices of the cover images, which have the trigger and their own label, sorted; usually none.
        material: what the attack has made with its network; its trigger may need it.
    """

    data: ImageSet
    index: Tensor
    cover: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    material: Material | None = None


class Poisoning(Entry):
    """Changes a training set. With a trigger it is a BackdoorAttack; without one it lowers the accuracy of a victim.

    Class attributes:
        learns: it makes something with a network of its own first: it defines `learn`.
    """

    learns: ClassVar[bool] = False

    def learning(self) -> bool:
        """Whether this instance makes something first."""
        return self.learns

    def check(self, num_classes: int) -> None:
        """Refuse labels outside the classes.

        Raises:
            ContractError: naming the class.
        """

    def learn(self, data: ImageSet, seed: int, surrogate: Classifier) -> Material:
        """What `poison` needs as `material`, by name, on the CPU. Only for `learns = True`; stored as an artifact.

        Args:
            data: the training set that is to be poisoned. Must not be changed.
            seed: that of `poison`.
            surrogate: an untrained network of the victim's architecture, on the device to compute on. The attacker may
                train it; the victim is trained from other weights.
        """
        raise ContractError(f"{self!r} declares learns = True and does not define learn")

    @abstractmethod
    def poison(self, data: ImageSet, seed: int, material: Material | None = None) -> Poisoned:
        """A changed copy of a training set, and which images were changed. The source does not change.

        Args:
            seed: of all randomness.
            material: what `learn` returned, for entries that learn.
        """

    def network(self, material: Material | None) -> Material | None:
        """The weights of the victim, for an attacker who trains it: those of the surrogate that `learn` has trained.

        None if the user trains the victim on the poisoned set. Defenses that train on the poisoned set get it in both
        cases.
        """
        return None

    def tamper(self, model: Classifier, data: ImageSet, seed: int) -> None:
        """Change the weights of the victim after it was trained on the poisoned set, in place. By default, do nothing.

        Args:
            data: the poisoned training set.
            seed: of all randomness.
        """

    @final
    def given(self, material: Material | None) -> dict[str, Any]:
        """The material as a keyword argument of the hooks; empty for an entry that does not learn.

        Raises:
            ContractError: when the entry learns and there is no material.
        """
        if not self.learning():
            return {}
        if material is None:
            raise ContractError(f"{self!r} learns from training images; call learn first and pass material=")
        return {"material": material}


@dataclass(frozen=True, kw_only=True)
class BackdoorAttack(Poisoning):
    """Poisons a fraction of the training set so that a trigger controls the prediction.

    An attack that learns has one more argument in `trigger`, `planted` and `covered`: `material`.

    Class attributes:
        clean_label: it poisons images of the target class only and keeps their labels.
        aims: its trigger should lead to a given class. Otherwise `target` has no effect and `wanted` is -1 everywhere;
            such an attack defines `poisoned_label`, and is measured on certified boards.

    Attributes:
        rate: fraction of the whole training set that is poisoned (also for clean-label attacks).
        target: label map. A class for all-to-one, `next` for all-to-all (y + 1), or `{source: target}` pairs, with
            which the other classes are not attacked.
        cover: fraction of the whole training set that gets the trigger and keeps its label.
    """

    clean_label: ClassVar[bool] = False
    aims: ClassVar[bool] = True
    added: ClassVar[tuple[str, ...]] = ("cover",)

    rate: Share = 0.1
    target: Class | Literal["next"] | dict[Source, Class] = 0
    cover: Share = 0.0

    @abstractmethod
    def trigger(self, x: Tensor, draws: Draws) -> Tensor:
        """Images with the trigger, [n, 3, H, W] in [0, 1]. Must not change x."""

    def triggered(self, x: Tensor, wanted: Tensor, draws: Draws, **material: Any) -> Tensor:
        """`trigger`, for attacks whose trigger depends on the target label: `wanted` [n]."""
        return self.trigger(x, draws, **material)

    def planted(self, x: Tensor, wanted: Tensor, draws: Draws, **material: Any) -> Tensor:
        """Poisoned training images, with the labels `wanted` [n]; by default those of the test."""
        return self.triggered(x, wanted, draws, **material)

    def covered(self, x: Tensor, y: Tensor, draws: Draws, **material: Any) -> Tensor:
        """Cover images, with their own labels `y` [n]; by default they have the trigger of the poisoned images."""
        return self.planted(x, y, draws, **material)

    def may_cover(self, y: Tensor) -> Tensor:
        """Which images may be cover images, by their labels, bool [n]; by default all that are not poisoned."""
        return torch.ones_like(y, dtype=torch.bool)

    def able(self, data: ImageSet) -> Tensor:
        """Which images have a poisoned form, bool [N]; by default all. Labels are checked separately."""
        return torch.ones(len(data), dtype=torch.bool)

    def keeps_labels(self) -> bool:
        """Whether this instance is a clean-label attack (wrappers return the value of the inner attack)."""
        return self.clean_label

    def wanted(self, y: Tensor, num_classes: int) -> Tensor:
        """The attacker's target label for each true label; -1 for classes that are not in the map."""
        if not self.aims:
            return torch.full_like(y, -1)
        if self.target == "next":
            return (y + 1) % num_classes
        if isinstance(self.target, int):
            return torch.full_like(y, self.target)
        table = torch.full((num_classes,), -1, dtype=torch.long, device=y.device)
        for source, target in self.target.items():
            table[source] = target
        return table[y]

    def poisoned_label(self, y: Tensor, num_classes: int) -> Tensor:
        """The label that an image gets when it is poisoned, by its own; -1 for images that may not be poisoned.

        A clean-label attack poisons the images of the target class. Two target classes would have the same trigger
        under two labels, so it has one.
        """
        wanted = self.wanted(y, num_classes)
        if not self.keeps_labels():
            return wanted
        every = self.wanted(torch.arange(num_classes, device=y.device), num_classes)
        targets = every[every >= 0].unique()
        return torch.where(y == targets[0], y, -1) if len(targets) == 1 else torch.full_like(y, -1)

    def relabelled(self, y: Tensor, num_classes: int, draws: Draws) -> Tensor:
        """`poisoned_label`, for attacks that draw the labels of their poisoned images; -1 for the same images."""
        return self.poisoned_label(y, num_classes)

    @final
    def eligible(self, data: ImageSet) -> Tensor:
        """Indices of the images that may be poisoned, at least as many as `rate` requires.

        Raises:
            ContractError: when a target is not one of the classes.
            NotApplicable: when fewer images are eligible than the rate or `cover` requires.
        """
        self.check(data.num_classes)
        pool = ((self.poisoned_label(data.labels, data.num_classes) >= 0) & self.able(data)).nonzero().squeeze(1)
        count, covers = self._counts(len(data))
        if count > len(pool):
            raise NotApplicable(
                f"{self!r}: {count} of {len(data)} images to poison, {len(pool)} eligible; "
                f"at most rate {math.floor(1000 * len(pool) / len(data)) / 1000:.3f}"
            )
        free = self.may_cover(data.labels)
        left = int(free.sum()) - min(count, int(free[pool].sum()))  # if poisoned images are taken from these first
        if covers > left:
            raise NotApplicable(
                f"{self!r}: {covers} of {len(data)} images to be cover images, {left} eligible; "
                f"at most cover {math.floor(1000 * left / len(data)) / 1000:.3f}"
            )
        return pool

    def _counts(self, n: int) -> tuple[int, int]:
        return round(self.rate * n), round(self.cover * n)

    @final
    def chosen(self, data: ImageSet, seed: int) -> tuple[Tensor, Tensor]:
        """(indices of the images that `poison` poisons, indices of its cover images), both sorted.

        Raises:
            ContractError, NotApplicable: as `eligible` does; also when a rate above zero is less than one image.
        """
        pool = self.eligible(data)
        count, covers = self._counts(len(data))
        for share, number, what in ((self.rate, count, "poisons"), (self.cover, covers, "covers")):
            if number == 0 and share > 0:
                raise NotApplicable(
                    f"{type(self).__name__}: rate {share:g} of {len(data)} training images {what} none of them; set a "
                    f"rate of at least {math.ceil(1000 / len(data)) / 1000:g}, or give more images"
                )
        index = pool[Draws(seed, data.ids[pool]).order("poison")[:count]].sort().values
        if not covers:
            return index, torch.empty(0, dtype=torch.long)
        free = self.may_cover(data.labels)
        free[index] = False
        rest = free.nonzero().squeeze(1)
        return index, rest[Draws(seed, data.ids[rest]).order("cover")[:covers]].sort().values

    @final
    def poison(self, data: ImageSet, seed: int, material: Material | None = None) -> Poisoned:
        """Replace `rate` of the images by poisoned ones, with the labels of the map. The source stays unchanged.

        Raises:
            ContractError, NotApplicable: as `chosen` does.
        """
        index, cover = self.chosen(data, seed)
        labels = data.labels.clone()
        draws, source = Draws(seed, data.ids), data.stored
        labels[index] = self.relabelled(data.labels, data.num_classes, draws)[index]
        roles: tuple[tuple[Role, Tensor], ...] = (("poison", index), ("cover", cover))
        for role, rows in roles:
            if not len(rows):
                continue
            changed = torch.empty(len(rows), *data.shape, dtype=data.kind.dtype)
            for part in torch.arange(len(rows)).split(max(1, STAMPED // math.prod(data.shape))):
                at = rows[part]
                x, aim = data.pixels(at), labels[at]
                stamped = self.stamp(x, draws[at], data.kind, wanted=aim, material=material, role=role)
                changed[part] = data.kind.store(stamped)
            source = source.replaced(rows, changed)  # the other images are shared with the source
        poisoned = replace(data, source=source, labels=labels, name=f"{data.name} poisoned")
        return Poisoned(poisoned, index, cover, material)

    @final
    def stamp(
        self,
        x: Tensor,
        draws: Draws,
        kind: Kind = IMAGE,
        *,
        wanted: Tensor | None = None,
        material: Material | None = None,
        role: Role = "test",
    ) -> Tensor:
        """Images with the trigger, with a check of its contract.

        Args:
            wanted: the target label of each image (its own label, for cover images), [n]; 0 if left out.
            material: `Poisoned.material`, for attacks that learn.
            role: whether the images are test images, poisoned training images or cover images.
        """
        before = x.clone()
        hooks: dict[Role, Callable[..., Tensor]] = {
            "test": self.triggered,
            "poison": self.planted,
            "cover": self.covered,
        }
        aim = torch.zeros(len(x), dtype=torch.long) if wanted is None else wanted
        out = hooks[role](x, aim.to(x.device), draws, **self.given(material))
        if not torch.equal(before, x):
            raise ContractError(f"{self!r}: trigger changed its input in place")
        if out.shape != x.shape or out.dtype != x.dtype or not bool(kind.inside(out).all()):
            raise ContractError(f"{self!r}: trigger must return {x.dtype} {tuple(x.shape)} in {kind.box}")
        return out

    def check(self, num_classes: int) -> None:
        if self.target == "next":
            used: set[int] = set()
        else:
            used = {self.target} if isinstance(self.target, int) else {*self.target.keys(), *self.target.values()}
        bad = [c for c in used if not 0 <= c < num_classes]
        if bad:
            raise ContractError(f"{self!r}: class {bad[0]} does not exist, the dataset has 0..{num_classes - 1}")
        if isinstance(self.target, dict) and all(source == to for source, to in self.target.items()):
            raise ContractError(f"{self!r}: the label map changes no class; write {{source: target}} with target other")
