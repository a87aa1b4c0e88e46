"""Suite: a validated YAML file. All names and values are checked before anything is computed."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, Field, PrivateAttr, ValidationError

from siegebench import placeholders
from siegebench.bundled import suite_path
from siegebench.errors import did_you_mean, shortened
from siegebench.inventory import Inventory, NamedData
from siegebench.tracks import TRACKS
from siegebench.tracks.base import BoardSpec, DataSpec, Seeds, Spec, Specs, Strict
from siegebench.yamlmarks import Document

if TYPE_CHECKING:
    Board = BoardSpec
else:
    Board = Annotated[Union[tuple(TRACKS.values())], Field(discriminator="track")]  # noqa: UP007
INPUTS = ("adversarial", "corrupted")  # kinds of inputs on detection boards
RENAMED = {"checks": "measures"}  # keys of earlier versions, still read, and their new names


class Suite(Strict):
    """A named list of boards. `data`, `models` and `seeds` at the top are defaults for boards without their own.

    `attack`, `defense` and the other kinds in `kinds.PLACED` are what `$attack`, ... on its boards stand for, see
    `placeholders`.
    """

    suite: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    summary: str = ""
    data: DataSpec | None = None
    models: Specs | None = None
    seeds: Seeds = Field(default=[0])
    attack: Spec | None = None
    defense: Spec | None = None
    backdoor: Spec | None = None
    detector: Spec | None = None
    camouflage: Spec | None = None
    certifier: Spec | None = None
    theft: Spec | None = None
    leak: Spec | None = None
    sharing: Spec | None = None
    boards: Annotated[list[Board], Field(min_length=1)]

    _inventory: Inventory = PrivateAttr()
    _origin: dict[str, Any] = PrivateAttr(default_factory=dict)

    def filled(self) -> list[BoardSpec]:
        """The boards, with the defaults of the suite filled in."""
        return [board.filled(self, ("boards", i)) for i, board in enumerate(self.boards)]

    @property
    def origin(self) -> dict[str, Any]:
        """Where the suite comes from, for its rows: `{name, set}`, the file (without its folder) and the overrides."""
        return self._origin or {"name": self.suite, "set": []}

    def inventory(self, given: dict[str, Any] | None = None, data: NamedData | None = None) -> Inventory:
        """The resolved entries of the suite; no data and no model is loaded yet.

        Args:
            given: description of a model passed from Python, which replaces the suite's models.
            data: images passed from Python, which replace the suite's data.
        """
        return self._inventory.of(given, data)


def load_suite(name: str, overrides: Sequence[str] = ()) -> Suite:
    """Read a suite, apply overrides, and validate keys, types, ranges, names, parameters and combinations.

    Args:
        name: a YAML file, or the name of a bundled suite.
        overrides: `path=value` assignments, applied before validation.

    Raises:
        ConfigError: one line, `file:line:col: what was found, what was expected`.
    """
    path = suite_path(name)
    document = Document.read(path)
    for assignment in overrides:
        document.override(assignment)
    suite = parse_suite(document)
    suite._origin = {"name": name if name == path.stem else path.name, "set": [_without_folders(o) for o in overrides]}
    return suite


def _without_folders(assignment: str) -> str:
    """An override as rows keep it: `x=C:/data/mine` becomes `x=.../mine`."""
    root, step, last = r"(?<![\w.])(?:~|\.{1,2}|[A-Za-z]:)?", r"(?:[/\\][^/\\,\[\]{}'\"]+)*", r"[/\\](?=[^/\\,])"
    return re.sub(root + step + last, ".../", assignment)


def parse_suite(document: Document) -> Suite:
    """Validate a document. Raises ConfigError like `load_suite`."""
    if not isinstance(document.data, dict):
        found = type(document.data).__name__ if document.data is not None else "nothing"
        raise document.error((), f"expected a mapping with suite, data, models, boards; found {found}")
    _check_keys(document)
    placeholders.fill(document)
    try:
        suite = Suite.model_validate(document.data)
    except ValidationError as error:
        raise document.error(*_first(error)) from None
    suite._inventory = Inventory(document)
    for board in suite.filled():
        board.check(suite._inventory)
    return suite


def _check_keys(document: Document) -> None:
    """Check for unknown keys first: the message suggests the nearest key, and a typo may cause further errors."""

    def known(model: type[BaseModel], data: dict[str, Any], loc: tuple[Any, ...]) -> None:
        names = [field.alias or name for name, field in model.model_fields.items()]
        for key in list(data):
            new = RENAMED.get(key, key)
            if new != key and new in names and new not in data:
                document.rename(loc, key, new)
                file, line, _ = document.where((*loc, new)).rsplit(":", 2)
                text = f"{document.where((*loc, new))}: the key {key!r} is called {new!r} now"
                warnings.warn_explicit(text, FutureWarning, file, int(line))
            elif key not in names:
                raise document.error((*loc, key), f"unknown key {shortened(key)}. {did_you_mean(str(key), names)}")
        for name, field in zip(names, model.model_fields.values(), strict=True):
            found = data.get(name)
            items = enumerate(found) if isinstance(found, list) else [(None, found)]
            for i, item in items:
                at = (*loc, name) if i is None else (*loc, name, i)
                if (model, name) == (Suite, "boards") and i is not None:
                    check_track(item, at)
                if isinstance(item, dict):
                    for inner in _models(field.annotation, item):
                        known(inner, item, at)

    def check_track(board: Any, loc: tuple[Any, ...]) -> None:
        if not isinstance(board, dict):
            raise document.error(loc, f"a board is a mapping with track, models, ...; found {shortened(board)}")
        track = board.get("track")
        if not isinstance(track, str) or track not in TRACKS:
            where = (*loc, "track") if "track" in board else loc
            raise document.error(where, f"unknown track {shortened(track)}. {did_you_mean(str(track), TRACKS)}")

    known(Suite, document.data, ())


def _models(annotation: Any, value: dict[str, Any]) -> Iterator[type[BaseModel]]:
    """The models of a type that a mapping is for: those of whose required literals it has one, such as its track."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fixed = {
            name: get_args(field.annotation)
            for name, field in annotation.model_fields.items()
            if field.is_required() and get_origin(field.annotation) is Literal
        }
        if all(value.get(name) in options for name, options in fixed.items()):
            yield annotation
    for inner in get_args(annotation):
        yield from _models(inner, value)


def _first(error: ValidationError) -> tuple[tuple[Any, ...], str]:
    first = error.errors()[0]
    # pydantic adds the tags of its unions to the path
    loc = tuple(s for s in first["loc"] if s not in (*TRACKS, *INPUTS, "str", "float", "dict[str,any]"))
    shown = ".".join(str(s) for s in loc)
    if first["type"] == "missing":
        return loc[:-1], f"{shown} is missing"
    if first["loc"][-1:] == ("str",):
        return loc, f"{shown}: expected a name or a mapping with `name`, found {shortened(first.get('input'))}"
    if first["type"].startswith("model_"):
        return loc, f"{shown}: expected a mapping, found {shortened(first.get('input'))}"
    message = first["msg"].removeprefix("Value error, ")
    found = "" if "found" in message else f", found {shortened(first.get('input'))}"
    return loc, f"{shown}: {message}{found}"
