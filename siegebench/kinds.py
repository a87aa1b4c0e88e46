"""The kinds of entries, in one place: names, folders, titles and base classes. Needs no torch."""

from __future__ import annotations

import importlib
from dataclasses import dataclass


@dataclass(frozen=True)
class EntryKind:
    """One kind of entry.

    Attributes:
        name: as cards and cells say it, such as `defense`.
        folder: where its files lie, imported as `siegebench.FOLDER`.
        title: of its section in the catalogue.
        base: `module:Class` of the class that its entries derive from.
        also: another kind, in whose place its entries can stand; that kind comes later in KINDS.
    """

    name: str
    folder: str
    title: str
    base: str
    also: str = ""

    @property
    def plural(self) -> str:
        """As `siegebench list` names it, and the module of its contract tests in `siegebench.testing`."""
        return f"{self.name.removesuffix('y')}ies" if self.name.endswith("y") else f"{self.name}s"

    def base_class(self) -> type:
        """The base class; imports torch."""
        module, _, name = self.base.partition(":")
        found: type = getattr(importlib.import_module(module), name)
        return found


KINDS: dict[str, EntryKind] = {
    kind.name: kind
    for kind in (
        EntryKind("attack", "attacks", "Attacks", "siegebench.types:Attack"),
        EntryKind("measure", "measures", "Measures", "siegebench.types:Measure"),
        EntryKind("defense", "defenses", "Defenses", "siegebench.types:Defense"),
        EntryKind("backdoor", "backdoors", "Backdoor attacks", "siegebench.types:Poisoning"),
        EntryKind("detector", "detectors", "Detectors", "siegebench.types:Detector"),
        EntryKind("corruption", "corruptions", "Corruptions", "siegebench.types:Corruption"),
        EntryKind("camouflage", "camouflage", "Camouflage", "siegebench.types:Camouflage"),
        EntryKind("certifier", "certifiers", "Certifiers", "siegebench.types:Certifier"),
        EntryKind("theft", "thefts", "Thefts of models", "siegebench.types:Theft"),
        EntryKind("leak", "leaks", "Leaks of gradients", "siegebench.types:Leak"),
        EntryKind("sharing", "sharings", "Rules of sharing gradients", "siegebench.types:Sharing"),
        EntryKind("study", "studies", "Studies", "siegebench.types:Study"),
        EntryKind("object_detector", "zoo", "Object detectors", "siegebench.types:ObjectDetectorSource", also="model"),
        EntryKind("model", "zoo", "Models", "siegebench.types:ModelSource"),
        EntryKind("dataset", "zoo", "Datasets", "siegebench.types:DataSource"),
    )
}


def kind_of(base: type) -> EntryKind:
    """The kind whose entries derive from a class, such as `defense` for Defense; imports torch.

    Raises:
        TypeError: for a class that is none of them.
    """
    for kind in KINDS.values():
        if issubclass(base, kind.base_class()):
            return kind
    raise TypeError(f"{base.__name__} is not the base class of a kind of entry")


FOLDERS: tuple[str, ...] = tuple(dict.fromkeys(kind.folder for kind in KINDS.values()))
# kinds that a suite may have a placeholder for, such as `$defense`; each is a key of a suite
PLACED: tuple[str, ...] = (
    "attack", "defense", "backdoor", "detector", "camouflage", "certifier", "theft", "leak", "sharing",
)  # fmt: skip
