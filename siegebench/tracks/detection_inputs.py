"""The inputs that detectors should find on the clean model: adversarial, corrupted, of other data, ambiguous."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from siegebench.cells import Cell, digest
from siegebench.data import ImageSet, subset
from siegebench.draws import Draws, derive_seed
from siegebench.errors import ConfigError
from siegebench.inventory import Inventory, Named, NamedData
from siegebench.tracks.base import Budget, ImagesSpec, Severity, Spec, Strict, ThreatSpec
from siegebench.types import Attack, Corruption, DataSource
from siegebench.workspace import Workspace
from siegebench.yamlmarks import Loc


class AdversarialInputs(Strict):
    """Adversarial images of an attack on the clean model."""

    kind: Literal["adversarial"]
    attack: Spec
    threat: ThreatSpec

    def resolve(self, inventory: Inventory, where: Loc) -> Named[Attack]:
        attack = inventory.resolve(Attack, self.attack, (*where, "attack"))
        with inventory.blame((*where, "threat")):
            threat = self.threat.model("gradient", None)
            if threat.norm not in attack.entry.handles():
                handles = ", ".join(attack.entry.handles())
                raise ConfigError(f"attack {attack.name!r} handles {handles}, not {threat.norm}")
            if threat.target is not None:
                raise ConfigError("inputs to be detected have no target class; leave target out")
        return attack

    def slots(self, inventory: Inventory, where: Loc, data: NamedData) -> dict[str, Any]:
        attack = inventory.identified(self.resolve(inventory, where))
        return {"attack": attack, "threat": self.threat.model("gradient", None).describe()}


class CorruptedInputs(Strict):
    """Corrupted images."""

    kind: Literal["corrupted"]
    corruption: Spec
    severity: Severity = 3

    def resolve(self, inventory: Inventory, where: Loc) -> Named[Corruption]:
        return inventory.resolve(Corruption, self.corruption, (*where, "corruption"))

    def slots(self, inventory: Inventory, where: Loc, data: NamedData) -> dict[str, Any]:
        return {"corruption": inventory.identified(self.resolve(inventory, where)), "severities": [self.severity]}


class OODInputs(ImagesSpec):
    """Images of another data set, resized to the images of the board. No threshold is chosen on them.

    `near_ood` are those of unknown classes of the same data, such as `open_set.gtsrb_unknown`; they have a board of
    their own.
    """

    kind: Literal["ood", "near_ood"]

    def resolve(self, inventory: Inventory, where: Loc) -> Named[DataSource]:
        return inventory.resolve(DataSource, self.set, (*where, "set"))

    def slots(self, inventory: Inventory, where: Loc, data: NamedData) -> dict[str, Any]:
        source = self.resolve(inventory, where)
        images = inventory.load(source, self.split, self.count, (*where, "set"))
        described = inventory.described(source, self.split, images)
        with inventory.blame((*where, "set")):
            _same_kind(images, data.images, source.name)
            if images.digest == data.images.digest:
                raise ConfigError(f"{source.name} is the data of the board; give another data set")
        return {"inputs": {"kind": self.kind, "data": described}}


class AmbiguousInputs(Strict):
    """Images between two classes, made by a data set such as `ambiguess` from training images when they are needed."""

    kind: Literal["ambiguous"]
    set: Spec
    split: Annotated[str, Field(min_length=1)] = "test"
    count: Budget | None = None

    def resolve(self, inventory: Inventory, where: Loc) -> Named[DataSource]:
        return inventory.resolve(DataSource, self.set, (*where, "set"))

    def slots(self, inventory: Inventory, where: Loc, data: NamedData) -> dict[str, Any]:
        source = inventory.identified(self.resolve(inventory, where))
        counted = {} if self.count is None else {"count": self.count}
        return {"inputs": {"kind": self.kind, "source": source, "split": self.split, **counted}}


Inputs = Annotated[
    AdversarialInputs | CorruptedInputs | OODInputs | AmbiguousInputs, Field(discriminator="kind")
]  # fmt: skip


def _same_kind(images: ImageSet, data: ImageSet, name: str) -> None:
    if images.kind.name != data.kind.name:
        raise ConfigError(f"{name} has inputs of the kind {images.kind.name}, the data of the board {data.kind.name}")


def other_images(cell: Cell, ws: Workspace, data: ImageSet) -> Tensor:
    """The positives of a cell without an attack: corrupted, of another data set, or ambiguous; all are to be found."""
    if cell.corruption is not None:
        corruption, (severity,) = ws.entry(Corruption, cell.corruption), cell.severities or []
        return corruption(data.pixels(), severity, Draws(derive_seed(cell.seed, "corruption"), data.ids))
    inputs = cell.inputs or {}
    if "data" in inputs:
        return fitted(ws.evaluated(inputs["data"]).pixels(), data.shape)

    def make() -> ImageSet:
        return subset(ws.entry(DataSource, inputs["source"]).load(inputs["split"]), inputs.get("count"))

    images: ImageSet = ws.remember(("made", digest(inputs)), make)
    _same_kind(images, data, str(inputs["source"]["name"]))
    return fitted(images.pixels(), data.shape)


def fitted(x: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Images in another form (C, H, W): bilinear, antialiased; grey is the mean of RGB, RGB three equal channels."""
    channels, height, width = shape
    if x.shape[1] != channels:
        x = x.mean(dim=1, keepdim=True).expand(-1, channels, -1, -1)
    if x.shape[-2:] != (height, width):
        x = F.interpolate(x, (height, width), mode="bilinear", antialias=True, align_corners=False)
    return torch.round(255 * x.clamp(0, 1)) / 255
