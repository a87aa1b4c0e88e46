"""ImageSet: labelled images and their kind, the splits that every track draws, and the data that an entry may use."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain

import torch
from torch import Tensor

from siegebench.draws import Draws
from siegebench.errors import ContractError, DataError, NotApplicable
from siegebench.rows import Rows

SMALLEST = 4  # training images that can be split
SUBSET_SEED = 0  # the evaluated subset of a dataset is the same in every suite
Size = int | tuple[int, int]  # of images: the side of a square, else (height, width)


@dataclass(frozen=True)
class Kind:
    """The meaning of the numbers of an input [n, C, H, W]: how they are stored, and the box of valid values.

    Attributes:
        name: as in `takes` of a card.
        dtype: of the stored numbers.
        channels: C.
        low, high: the box of the model's inputs.
        grid: the stored integers are the model's inputs times this number; None if both are equal.
        whole: the model's inputs are integers themselves, such as the code points of a text.
    """

    name: str
    dtype: torch.dtype
    channels: int
    low: float
    high: float
    grid: int | None = None
    whole: bool = False

    def check(self, stored: Tensor | Rows, name: str) -> None:
        """Refuse data that is not stored in the form of this kind.

        Raises:
            DataError: with what was found and what is expected.
        """
        shape = stored.shape
        if stored.dtype != self.dtype or len(shape) != 4 or shape[1] != self.channels:
            form = f"{str(self.dtype).removeprefix('torch.')} [N, {self.channels}, H, W]"
            raise DataError(f"{name}: expected {form}, found {stored.dtype} {tuple(shape)}")

    def load(self, stored: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Stored numbers as model inputs."""
        x = stored.to(self.dtype if self.whole else dtype, copy=True)  # nobody writes into the stored images
        return x if self.grid is None else x.div_(self.grid)

    def store(self, x: Tensor) -> Tensor:
        """Model inputs in stored form; rounded if that is coarser."""
        x = x if self.grid is None else x * self.grid
        return x.to(self.dtype) if self.dtype.is_floating_point else x.round().to(self.dtype)

    def inside(self, x: Tensor, slack: float = 0.0) -> Tensor:
        """Which of the inputs [n, ...] are in the box, bool [n]; false for NaN."""
        rows = x.flatten(1)
        return (rows.amin(dim=1) >= self.low - slack) & (rows.amax(dim=1) <= self.high + slack)

    @property
    def box(self) -> str:
        """The box, for messages."""
        return f"[{self.low:g}, {self.high:g}]"


IMAGE = Kind("image", torch.uint8, channels=3, low=0.0, high=1.0, grid=255)
GREY = replace(IMAGE, channels=1)  # images too: what takes images takes these, or says why not
# coordinates, frames, joints; a joint in a frame is what l0 counts
SEQUENCE = Kind("sequence", torch.float32, channels=3, low=0.0, high=1.0)
PLANAR = replace(SEQUENCE, channels=2)  # x and y only
# a film of 0 and 1 as a strip: frames and their two polarities one below the other, so that l0 counts events
EVENTS = Kind("events", torch.uint8, channels=1, low=0.0, high=1.0)
# Unicode code points [N, 1, 1, L], 0 ends a text; a character is what l0 counts
TEXT = Kind("text", torch.int64, channels=1, low=0, high=0x10FFFF, whole=True)
KINDS = {kind.name: kind for kind in (IMAGE, SEQUENCE, EVENTS, TEXT)}  # by the names in `takes`; one for each name


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images, NCHW, with ids that do not change when images are selected.

    Sets selected from one another share their images. `pixels` reads some of them, `images` all. For a selection that
    is a copy, so use `shape`, `size` or `len` when the pixels are not needed.

    Attributes:
        source: the images as stored by their kind, uint8 [N, C, H, W] for images; or `Rows`, which may decode them when
            they are read.
        labels: int64 [N], in [0, num_classes).
        ids: int64 [N], the index of each image in the published order of its split.
        num_classes: of the dataset, also when a selection has fewer.
        name: of the dataset and split, for messages.
        groups: int64 [N] or None; images of one group (frames of one track) are always on the same side of a split.
        kind: the meaning of the numbers.
        classes: the names of the classes in the order of their labels, if they are known.
    """

    source: Tensor | Rows
    labels: Tensor
    ids: Tensor
    num_classes: int
    name: str
    groups: Tensor | None = None
    kind: Kind = IMAGE
    classes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        n = len(self.stored)
        if n == 0:
            raise DataError(f"{self.name}: no images")
        if not self.stored.encoded:  # encoded images are checked when they are decoded
            self.kind.check(self.stored, self.name)
        if len(self.labels) != n or len(self.ids) != n:
            raise DataError(f"{self.name}: {n} images, {len(self.labels)} labels, {len(self.ids)} ids")
        if self.classes is not None and len(self.classes) != self.num_classes:
            raise DataError(f"{self.name}: {self.num_classes} classes, {len(self.classes)} names")
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= self.num_classes:
            raise DataError(f"{self.name}: label {low if low < 0 else high} is outside 0..{self.num_classes - 1}")

    def __len__(self) -> int:
        return len(self.stored)

    @cached_property
    def stored(self) -> Rows:
        """The images in stored form, read a few at a time."""
        return self.source if isinstance(self.source, Rows) else Rows(self.source)

    @property
    def images(self) -> Tensor:
        """The images in stored form, in one tensor."""
        return self.stored[:]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of each image."""
        _, channels, height, width = self.stored.shape
        return channels, height, width

    @property
    def size(self) -> Size:
        """Side of square images, else (height, width): the size that networks are built for."""
        _, height, width = self.shape
        return height if height == width else (height, width)

    def select(self, index: Tensor, name: str | None = None) -> ImageSet:
        """Some of the images, in the order of the index; they are not copied."""
        return replace(
            self,
            source=self.stored.select(index),
            labels=self.labels[index],
            ids=self.ids[index],
            groups=None if self.groups is None else self.groups[index],
            name=name or self.name,
        )

    def in_memory(self) -> ImageSet:
        """The same set with its images decoded, independent of the set it was selected from."""
        return replace(self, source=self.stored.in_memory())

    def pixels(self, index: Tensor | slice = slice(None), dtype: torch.dtype = torch.float32) -> Tensor:
        """Images as model inputs: for kind image, float NCHW in [0, 1]."""
        return self.kind.load(self.stored[index], dtype)

    @cached_property
    def digest(self) -> str:
        """sha256 over pixels, labels and ids, part of the key of a cell."""
        h = hashlib.sha256(str((tuple(self.stored.shape), self.num_classes)).encode())
        for part in chain(self.stored.pieces(), (self.labels, self.ids)):
            h.update(part.contiguous().numpy().reshape(-1).data)
        return h.hexdigest()


def subset(data: ImageSet, count: int | None) -> ImageSet:
    """The class-stratified subset of a split that a suite requests by `count`, in memory; no other image is read.

    Raises:
        DataError: when the split has fewer images, or one of them is corrupt.
    """
    if count is None or count == len(data):
        return data.in_memory()
    return data.select(stratified(data, count, SUBSET_SEED)).in_memory()


def limited(data: ImageSet, count: int | None) -> ImageSet:
    """The class-stratified training images that a board asks for by `train`; none is read.

    Raises:
        DataError: when the split has fewer images.
    """
    if count is None:
        return data
    return data.select(stratified(data, count, SUBSET_SEED, "train subset"))


def stratified(data: ImageSet, count: int, seed: int, purpose: str = "subset") -> Tensor:
    """Indices of `count` images, classes in the proportions of the set, drawn by id; sorted.

    Raises:
        DataError: when the set has fewer images.
    """
    if not 0 < count <= len(data):
        raise DataError(f"{data.name}: {count} images requested, it has {len(data)}")
    order = Draws(seed, data.ids).order(purpose)
    labels = data.labels[order]
    # rank of each image in its class, as a fraction: selecting the smallest fractions keeps the class proportions
    rank = torch.zeros(len(data), dtype=torch.float64)
    for c in labels.unique():
        members = (labels == c).nonzero().squeeze(1)
        rank[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    return order[torch.argsort(rank, stable=True)[:count]].sort().values


def _budget(n: int, classes: int, share: float) -> int:
    """How many of n images or groups are held out."""
    wanted = max(2 * classes, round(share * n))
    return wanted if wanted < n else max(1, n // 2)


def split_clean(data: ImageSet, share: float = 0.05, seed: int = 0) -> tuple[ImageSet, ImageSet, ImageSet]:
    """A training set, and a small verified-clean budget held out of it: (train, fit, val).

    The budget is a fraction `share` of the set (usual for backdoor defenses: 5 %) and at least two images per class, or
    half of a set that has no more than that. 80 % of it is for optimisation (`fit`) and 20 % for every stopping or
    threshold decision (`val`). If the set has groups, whole groups are held out.

    Raises:
        NotApplicable: when the set is too small for the three parts.
    """
    if len(data) < SMALLEST:
        raise NotApplicable(
            f"{data.name}: {len(data)} training images; the training set and the clean budget held out of it need at "
            f"least {SMALLEST}: give more images"
        )
    if data.groups is None:
        held = stratified(data, _budget(len(data), data.num_classes, share), seed, "clean budget")
    else:
        groups, first = torch.unique(data.groups, return_inverse=True)
        if len(groups) < 2:
            raise NotApplicable(f"{data.name}: all training images are of one group, which cannot be divided")
        # one unit per group: hold out whole groups, stratified by the label of the group
        owner = torch.zeros(len(groups), dtype=torch.long).scatter(0, first, data.labels)
        units = ImageSet(
            torch.zeros(len(groups), 3, 1, 1, dtype=torch.uint8), owner, groups, data.num_classes, data.name
        )
        chosen = stratified(units, _budget(len(groups), data.num_classes, share), seed, "clean budget")
        held = torch.isin(first, chosen).nonzero().squeeze(1)
    keep = torch.ones(len(data), dtype=torch.bool)
    keep[held] = False
    budget = data.select(held)
    if len(budget) < 2:
        raise NotApplicable(f"{data.name}: one image in the clean budget, 2 are needed: give more images")
    val = torch.zeros(len(budget), dtype=torch.bool)
    val[stratified(budget, max(1, round(0.2 * len(budget))), seed, "clean val")] = True
    return (
        data.select(keep.nonzero().squeeze(1), f"{data.name}/train"),
        budget.select((~val).nonzero().squeeze(1), f"{data.name}/clean-fit"),
        budget.select(val.nonzero().squeeze(1), f"{data.name}/clean-val"),
    )


class Granted:
    """The data an entry may use: exactly what its card lists under `sees`.

    `train` is the (possibly poisoned) training set with the labels as given. `clean` and `val` are the small verified
    budget for optimisation and for stopping or threshold decisions.
    """

    FIELDS = ("train", "clean", "val")

    def __init__(self, owner: str, sees: tuple[str, ...], **sources: Callable[[], ImageSet]) -> None:
        self._owner, self._sees = owner, sees
        # sources that are not granted are not kept
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
