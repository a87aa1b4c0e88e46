"""Card: the YAML file beside an entry's Python file, which registers it. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from siegebench.errors import ConfigError, did_you_mean, shortened
from siegebench.kinds import KINDS
from siegebench.yamlmarks import Document

Sees = Literal["train", "clean", "val"]
# what the harness and the leaderboard know an entry by, instead of its name
Trait = Literal[
    "one_step",  # attack: a single gradient step; it must not beat the iterative ones
    "iterative",  # attack: many steps along the gradient
    "plain",  # attack: climbs the loss that its parameter `loss` names, cross-entropy where it has none
    "required",  # attack: a white-box entry is ranked only under it
    "reference",  # defense: what every other defense has to beat
    "silent",  # measure: speaks through flags only, its figures stay in its rows
]


def _known_kind(kind: str) -> str:
    if kind not in KINDS:
        raise ValueError(f"unknown kind {shortened(kind)}. {did_you_mean(kind, KINDS)}")
    return kind


class Card(BaseModel):
    """One registered entry, as its YAML says it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    kind: Annotated[str, AfterValidator(_known_kind)]
    entry: str = Field(pattern=r"^[a-z_][a-z0-9_]*:[A-Za-z_][A-Za-z0-9_]*$")
    version: int = Field(ge=1, lt=10**6)
    summary: str = Field(min_length=10)
    paper: str = ""
    contact: str = ""
    licence: str = ""
    params: dict[str, Any] = {}  # values that differ from the class's defaults: one class may serve many cards
    presets: dict[str, dict[str, Any]] = {}
    sees: tuple[Sees, ...] = ()  # the data a defense or detector is given
    takes: tuple[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], ...] = ("image",)  # kinds of data, or `any`
    control: bool = False  # a planted control: shown, never ranked
    family: bool = False  # `card/ANY` is passed to the entry as its field `target`
    traits: tuple[Trait, ...] = ()
    members: dict[str, tuple[Trait, ...]] = {}  # of a family: some of them, with their traits
    expect: dict[str, Any] = {}

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Registered:
    """A card, its full name and the place it came from."""

    card: Card
    name: str  # with the package in front for cards of others
    path: Path
    package: str  # python package that holds the entry's module


def read(path: Path, package: str, prefix: str) -> Registered:
    """The card in a file.

    Raises:
        ConfigError: one line with the position, when it is not one.
    """
    document = Document.read(path)
    try:
        card = Card.model_validate(document.data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "card"
        message = first["msg"].removeprefix("Value error, ")
        found = "" if first["type"] == "missing" else f", found {shortened(first.get('input'))}"
        raise document.error(first["loc"], f"{where}: {message}{found}") from None
    if card.name != path.stem:
        raise ConfigError(f"{path}: name is {shortened(card.name)}, the file is called {path.stem!r}; they must agree")
    return Registered(card, f"{prefix}{card.name}", path, package)
