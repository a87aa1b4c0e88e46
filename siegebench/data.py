"""ImageSet: labelled images in memory, the splits that every track draws from them, and what of it an entry may see."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from siegebench.draws import Draws
from siegebench.errors import ContractError, DataError

SUBSET_SEED = 0


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images, uint8 NCHW RGB, with ids that survive any selection.

    Attributes:
        images: uint8 [N, 3, H, W].
        labels: int64 [N], in [0, num_classes).
        ids: int64 [N], the place of each image in the published order of its split.
        num_classes: of the dataset, also where a selection holds fewer.
        name: of the dataset and split, for messages.
        groups: int64 [N] or None; images of one group (frames of one track) never lie on both sides of a split.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor
    num_classes: int
    name: str
    groups: Tensor | None = None

    def __post_init__(self) -> None:
        n = len(self.images)
        if n == 0:
            raise DataError(f"{self.name}: no images")
        if self.images.dtype != torch.uint8 or self.images.dim() != 4 or self.images.shape[1] != 3:
            raise DataError(
                f"{self.name}: expected uint8 [N, 3, H, W], found {self.images.dtype} {tuple(self.images.shape)}"
            )
        if len(self.labels) != n or len(self.ids) != n:
            raise DataError(f"{self.name}: {n} images, {len(self.labels)} labels, {len(self.ids)} ids")
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= self.num_classes:
            raise DataError(f"{self.name}: label {low if low < 0 else high} is outside 0..{self.num_classes - 1}")

    def __len__(self) -> int:
        return len(self.images)

    def select(self, index: Tensor, name: str | None = None) -> ImageSet:
        """Some of the images, in the order of the index."""
        groups = None if self.groups is None else self.groups[index]
        return replace(
            self,
            images=self.images[index],
            labels=self.labels[index],
            ids=self.ids[index],
            groups=groups,
            name=name or self.name,
        )

    def pixels(self, index: Tensor | slice = slice(None), dtype: torch.dtype = torch.float32) -> Tensor:
        """float NCHW in [0, 1]."""
        return self.images[index].to(dtype) / 255

    @cached_property
    def digest(self) -> str:
        """sha256 over pixels, labels and ids: what goes into the key of a cell."""
        h = hashlib.sha256(str((tuple(self.images.shape), self.num_classes)).encode())
        for part in (self.images, self.labels, self.ids):
            h.update(part.contiguous().numpy().tobytes())
        return h.hexdigest()


def stratified(data: ImageSet, count: int, seed: int, purpose: str = "subset") -> Tensor:
    """Indices of `count` images, classes in the proportions of the set, drawn by id; sorted.

    Raises:
        DataError: when the set has fewer images.
    """
    if not 0 < count <= len(data):
        raise DataError(f"{data.name}: asked for {count} images, it has {len(data)}")
    order = Draws(seed, data.ids).order(purpose)
    labels = data.labels[order]
    # place of each image within its class, as a share: taking the smallest shares keeps the proportions
    rank = torch.zeros(len(data), dtype=torch.float64)
    for c in labels.unique():
        members = (labels == c).nonzero().squeeze(1)
        rank[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    return order[torch.argsort(rank, stable=True)[:count]].sort().values


def subset(data: ImageSet, count: int | None) -> ImageSet:
    """The fixed class-stratified slice that a suite names by its size, the same in every suite."""
    return data if count is None or count == len(data) else data.select(stratified(data, count, SUBSET_SEED))


def split_clean(data: ImageSet, share: float = 0.05, seed: int = 0) -> tuple[ImageSet, ImageSet, ImageSet]:
    """A training set, and a small verified-clean budget held out of it: (train, fit, val).

    The budget is `share` of the set (specs of the backdoor field: 5 %), 80 % of it for optimisation (`fit`) and 20 %
    for every stopping or threshold decision (`val`). Whole groups are held out where the set has groups.
    """
    if data.groups is None:
        held = stratified(data, max(2 * data.num_classes, round(share * len(data))), seed, "clean budget")
    else:
        groups, first = torch.unique(data.groups, return_inverse=True)
        # one unit a group: hold out whole groups, stratified by the label of the group
        owner = torch.zeros(len(groups), dtype=torch.long).scatter(0, first, data.labels)
        units = ImageSet(
            torch.zeros(len(groups), 3, 1, 1, dtype=torch.uint8), owner, groups, data.num_classes, data.name
        )
        chosen = stratified(units, max(2 * data.num_classes, round(share * len(groups))), seed, "clean budget")
        held = torch.isin(first, chosen).nonzero().squeeze(1)
    keep = torch.ones(len(data), dtype=torch.bool)
    keep[held] = False
    budget = data.select(held)
    val = torch.zeros(len(budget), dtype=torch.bool)
    val[stratified(budget, max(1, round(0.2 * len(budget))), seed, "clean val")] = True
    return (
        data.select(keep.nonzero().squeeze(1), f"{data.name}/train"),
        budget.select((~val).nonzero().squeeze(1), f"{data.name}/clean-fit"),
        budget.select(val.nonzero().squeeze(1), f"{data.name}/clean-val"),
    )


class Granted:
    """The data an entry may see: exactly what its card lists under `sees`.

    `train` is the (possibly poisoned) training set with the labels as given, `clean` and `val` the small verified
    budget for optimisation and for stopping or threshold decisions.
    """

    FIELDS = ("train", "clean", "val")

    def __init__(self, owner: str, sees: tuple[str, ...], **sources: Callable[[], ImageSet]) -> None:
        self._owner, self._sees = owner, sees
        # what is not granted is not even held
        self._sources = {k: v for k, v in sources.items() if k in sees}

    def _get(self, name: str) -> ImageSet:
        if name not in self._sources:
            raise ContractError(
                f"{self._owner} reads '{name}', which its card does not declare "
                f"(sees: {', '.join(self._sees) or 'nothing'})"
            )
        return self._sources[name]()

    @property
    def train(self) -> ImageSet:
        return self._get("train")

    @property
    def clean(self) -> ImageSet:
        return self._get("clean")

    @property
    def val(self) -> ImageSet:
        return self._get("val")
