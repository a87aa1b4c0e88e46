"""Card: the YAML file next to an entry's Python file, which registers the entry. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from siegebench.errors import ConfigError, did_you_mean, shortened
from siegebench.kinds import KINDS
from siegebench.yamlmarks import Document

Sees = Literal["train", "clean", "val"]
# properties of entries that the evaluation and the leaderboard use
Trait = Literal[
    "one_step",  # attack: a single gradient step; it must not be stronger than iterative attacks
    "iterative",  # attack: many gradient steps
    "plain",  # attack: maximises the loss of its parameter `loss`, cross-entropy by default
    "adaptive",  # attack: adapts to the victim by itself; run on every defended entry of a white-box board
    "required",  # attack, theft: a white-box entry, or one of an extraction board, is ranked only if it was run
    "averaging",  # theft: averages answers to one image; a randomised victim is ranked only if such a theft was run
    "detector_aware",  # attack: evades the detector too; detectors of adversarial images are ranked only under one
    "reference",  # defense: the baseline for others; detector, camouflage, theft: without the victim, what others beat
    "identity",  # defense: answers as the undefended model, by construction
    "silent",  # measure: reports flags only; its metrics are not shown on boards
]


def _known_kind(kind: str) -> str:
    if kind not in KINDS:
        raise ValueError(f"unknown kind {shortened(kind)}. {did_you_mean(kind, KINDS)}")
    return kind


class Card(BaseModel):
    """The YAML card of an entry."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    kind: Annotated[str, AfterValidator(_known_kind)]
    entry: str = Field(pattern=r"^[a-z_][a-z0-9_]*:[A-Za-z_][A-Za-z0-9_]*$")
    version: int = Field(ge=1, lt=10**6)
    summary: str = Field(min_length=10)
    paper: str = ""
    contact: str = ""
    licence: str = ""
    params: dict[str, Any] = {}  # defaults that differ from the class's; one class may have many cards
    presets: dict[str, dict[str, Any]] = {}
    sees: tuple[Sees, ...] = ()  # the splits that a defense or detector may use
    takes: tuple[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], ...] = ("image",)  # kinds of data, or `any`
    control: bool = False  # a planted control: listed, never ranked
    family: bool = False  # `card/ANY` is passed to the entry as its field `target`
    traits: tuple[Trait, ...] = ()
    members: dict[str, tuple[Trait, ...]] = {}  # of a family: members with their traits
    expect: dict[str, Any] = {}

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Registered:
    """A card, its full name and its origin."""

    card: Card
    name: str  # with the package as prefix for cards of other packages
    path: Path
    package: str  # Python package of the entry's module


def read(path: Path, package: str, prefix: str) -> Registered:
    """Read a card from a file.

    Raises:
        ConfigError: one line with the position, when the card is invalid.
    """
    document = Document.read(path)
    try:
        card = Card.model_validate(document.data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "card"
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            key = str(first["loc"][0])
            raise document.error(
                first["loc"], f"unknown key {shortened(key)}. {did_you_mean(key, Card.model_fields)}"
            ) from None
        found = "" if first["type"] == "missing" else f", found {shortened(first.get('input'))}"
        raise document.error(first["loc"], f"{where}: {message}{found}") from None
    if card.name != path.stem:
        raise ConfigError(f"{path}: name is {shortened(card.name)}, the file is called {path.stem!r}; they must agree")
    return Registered(card, f"{prefix}{card.name}", path, package)
