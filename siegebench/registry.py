"""The registry: a YAML card next to a Python file registers an entry. Listing imports no entry and no torch.

A card has `name` (= file stem), `kind`, `entry` (`module:Class`), `version`, `summary`, and optionally `paper`,
`presets`, `params`, `sees`, `takes`, `family`. Other packages provide cards through the entry point group
`siegebench.cards` (a function or module attribute that returns a folder); their entries are named `package/card`.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import importlib.util
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import fields
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_type_hints, overload

from pydantic import TypeAdapter, ValidationError

from siegebench.card import Card, Registered, read
from siegebench.errors import ConfigError, did_you_mean, shortened
from siegebench.kinds import FOLDERS, KINDS, kind_of

if TYPE_CHECKING:
    from siegebench.types import Entry

E = TypeVar("E", bound="Entry")
ANY = "any"  # in `takes`: every kind of data


def _folders() -> Iterator[tuple[Path, str, str]]:
    """(folder of cards, python package, name prefix)"""
    for folder in FOLDERS:
        spec = importlib.util.find_spec(f"siegebench.{folder}")
        for path in (spec.submodule_search_locations or []) if spec else []:
            yield Path(path), f"siegebench.{folder}", ""
    for point in importlib.metadata.entry_points(group="siegebench.cards"):
        package = point.module
        spec = importlib.util.find_spec(package)
        for path in (spec.submodule_search_locations or []) if spec else []:
            yield Path(path), package, f"{point.name}/"


@lru_cache(maxsize=1)
def cards() -> Mapping[tuple[str, str], Registered]:
    """Every card, by (kind, name).

    Raises:
        ConfigError: with the file, when a card is invalid or two cards have the same name.
    """
    found: dict[tuple[str, str], Registered] = {}
    for folder, package, prefix in _folders():
        for path in sorted(folder.glob("*.yaml")):
            entry = read(path, package, prefix)
            key = (entry.card.kind, entry.name)
            if key in found:
                raise ConfigError(f"{path}: {key[0]} {key[1]!r} is already registered by {found[key].path}")
            found[key] = entry
    return found


def names(kind: str) -> list[str]:
    """The names of one kind, sorted."""
    return sorted(name for k, name in cards() if k == kind)


def find(kind: str, name: str, *, families: bool = False) -> tuple[Registered, dict[str, Any]]:
    """The card of `name`, `name.preset` or `family/Anything`, and the parameters that the name implies.

    An entry is also found as the kind in whose place it can stand (`EntryKind.also`).

    Args:
        families: for the message about an unknown name, also look among the members of families, which imports them.

    Raises:
        ConfigError: for an unknown name, with the nearest one.
    """
    if not isinstance(name, str):
        raise ConfigError(f"a {kind} is named by text, found {shortened(name)}")
    kinds = (kind, *(other.name for other in KINDS.values() if other.also == kind))
    for one in kinds:
        if (found := _find(one, name)) is not None:
            return found
    known = [other for one in kinds for other in names(one)]
    wide = families and not difflib.get_close_matches(name, known, n=1, cutoff=0.8)
    near = (_in_families(kind, name) if wide else "") or did_you_mean(name, known)
    raise ConfigError(f"unknown {kind} {shortened(name)}. {near} See `siegebench list {KINDS[kind].plural}`.")


def _find(kind: str, name: str) -> tuple[Registered, dict[str, Any]] | None:
    known, (base, _, preset), (family, _, target) = cards(), name.rpartition("."), name.partition("/")
    if found := known.get((kind, name)):
        return found, dict(found.card.params)
    if base and (found := known.get((kind, base))):
        if preset not in found.card.presets:
            raise ConfigError(
                f"{kind} {base!r} has no preset {shortened(preset)}. {did_you_mean(preset, found.card.presets)}"
            )
        return found, {**found.card.params, **found.card.presets[preset]}
    if target and (found := known.get((kind, family))) and found.card.family:
        return found, {**found.card.params, "target": target}
    return None


def _in_families(kind: str, name: str) -> str:
    """For a message: the family that has an unknown name or one like it, such as timm for `resnet18`."""
    for (other, family), found in cards().items():
        targets = getattr(entry_class(kind, family), "targets", None) if other == kind and found.card.family else None
        if targets is not None:
            near = difflib.get_close_matches(name, [n for n in targets() if n == name] or targets(), n=1, cutoff=0.8)
            if near:
                return f"Did you mean {family}/{near[0]}?"
    return ""


def traits(kind: str, name: str) -> frozenset[str]:
    """The traits of an entry; none if it is not registered (rows from other sources may have any name)."""
    try:
        found, given = find(kind, name)
    except ConfigError:
        return frozenset()
    return frozenset(found.card.members.get(str(given.get("target")), ()) if found.card.family else found.card.traits)


def with_trait(kind: str, trait: str, data: str = "") -> list[str]:
    """The entries of a kind that have a trait; those that take a kind of data, if one is given."""
    found = [name for name in names(kind) if trait in traits(kind, name)]
    return [name for name in found if not data or _takes(find(kind, name)[0].card, data)]


def _takes(card: Card, data: str) -> bool:
    return data in card.takes or ANY in card.takes


@cache
def entry_class(kind: str, name: str) -> type[Entry]:
    """Import the class behind a name."""
    found, _ = find(kind, name)
    module, _, attribute = found.card.entry.partition(":")
    try:
        loaded = getattr(importlib.import_module(f"{found.package}.{module}"), attribute)
    except Exception as error:  # the file of an entry may raise anything
        where = _line_of(error, found.path.with_name(f"{module}.py"))
        raise ConfigError(f"{where}: entry {found.card.entry!r} cannot be imported: {_in_words(error)}") from error
    from siegebench.types import Entry

    if not (isinstance(loaded, type) and issubclass(loaded, Entry)):
        raise ConfigError(f"{found.path}: entry {found.card.entry!r} is not an Entry")
    return loaded


def _line_of(error: Exception, code: Path) -> str:
    """`file:line` of the last line of an entry's file that an error went through; the file if there is none."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == code]
    return f"{code}:{frames[-1].lineno}" if frames else str(code)


def _in_words(error: Exception) -> str:
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    text = " ".join(message.split())
    return text if isinstance(error, (ImportError, AttributeError)) else f"{type(error).__name__}: {text}"


def normal(spec: Any) -> dict[str, Any]:
    """`pgd` or `{name: pgd, steps: 7}` as a mapping with a name."""
    if isinstance(spec, str):
        return {"name": spec}
    if isinstance(spec, Mapping) and isinstance(spec.get("name"), str):
        return dict(spec)
    raise ConfigError(f"expected a name or a mapping with `name`, found {shortened(spec)}")


def _nested_kind(hint: Any) -> str | None:
    """The kind of the nested entry of a field, or None."""
    options = [option for option in (hint, *get_args(hint)) if isinstance(option, type)]
    return next((k.name for k in KINDS.values() for option in options if issubclass(option, k.base_class())), None)


@overload
def build(kind: type[E], spec: Any) -> E: ...
@overload
def build(kind: str, spec: Any) -> Entry: ...


def build(kind: Any, spec: Any) -> Any:
    """An entry from its name and parameters; nested entries are built too.

    Args:
        kind: a base class (`build(Attack, "pgd")`), or the name of a kind.
        spec: a name, or a mapping with `name` and parameters.

    Raises:
        ConfigError: unknown name, unknown parameter (with the nearest one) or a wrong value. Its attribute `loc` holds
            the path of the error inside the spec, for the line number.
    """
    if isinstance(kind, str):
        return _build(kind, spec)
    entry = _build(kind_of(kind).name, spec)
    if not isinstance(entry, kind):
        raise ConfigError(f"{normal(spec)['name']!r} is a {type(entry).__name__}, expected a {kind.__name__}")
    return entry


def _build(kind: str, spec: Any) -> Entry:
    given = normal(spec)
    found, params = find(kind, given["name"], families=True)
    cls = entry_class(kind, given["name"])
    values = {**params, **{k: v for k, v in given.items() if k != "name"}}
    known = {f.name for f in fields(cls)}
    if taken := known & {"name", "version"}:  # reserved: they identify an entry in cells and cards
        raise ConfigError(f"{found.path}: {cls.__name__} has a parameter {taken.pop()!r}; give it another name")
    free = next((f.name for f in fields(cls) if f.metadata.get("rest")), None)
    if free is not None:  # a family passes unknown keys to the class that it adapts
        rest = {k: values.pop(k) for k in list(values) if k not in known}
        values[free] = {**rest, **values.get(free, {})}
    for key in values:
        if key not in known:
            raise _located(
                f"{kind} {given['name']!r} has no parameter {shortened(key)}. {did_you_mean(key, known)}", (key,)
            )
    hints = get_type_hints(cls)
    for key, value in values.items():
        nested = _nested_kind(hints[key])
        if nested is not None and isinstance(value, (str, Mapping)):
            try:
                values[key] = _build(nested, value)
            except ConfigError as error:
                raise _located(str(error), (key, *getattr(error, "loc", ()))) from None
    try:
        entry: Entry = TypeAdapter(cls).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        # what the entry itself refuses says already what it found
        then = f", found {shortened(first.get('input'))}" if where else ""
        raise _located(
            f"{kind} {given['name']!r}: {where + ': ' if where else ''}{message}{then}"
            if first["type"] != "missing"
            else f"{kind} {given['name']!r} needs the parameter {where!r}",
            first["loc"],
        ) from None
    object.__setattr__(entry, "_name", found.name if not found.card.family else given["name"])
    return entry


def without_local(kind: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    """A spec as written, without fields for folders and files on this machine."""
    cls = entry_class(kind, spec["name"])
    hints = get_type_hints(cls)

    def strip(key: str, value: Any) -> Any:
        nested = _nested_kind(hints[key]) if key in hints else None
        return without_local(nested, value) if nested is not None and isinstance(value, Mapping) else value

    return {key: strip(key, value) for key, value in spec.items() if key not in cls.local}


def _located(message: str, loc: tuple[Any, ...]) -> ConfigError:
    error = ConfigError(message)
    error.loc = loc  # type: ignore[attr-defined]
    return error


def check_takes(entry: Entry, data: str) -> None:
    """Refuse an entry if it, or one of its nested entries, does not take a kind of data.

    Args:
        data: the name of the kind, such as `image`.

    Raises:
        ConfigError: with the entry and the kinds that it takes.
    """
    name, kind = entry._name, kind_of(type(entry)).name  # type: ignore[attr-defined]
    card = find(kind, name)[0].card
    if not _takes(card, data):
        raise ConfigError(f"{kind} {name!r} takes {', '.join(card.takes)}, the data is {data}")
    for field in fields(entry):
        inner = getattr(entry, field.name)
        if hasattr(inner, "_name"):
            check_takes(inner, data)


def describe(kind: str, spec: Any) -> dict[str, Any]:
    """The entry's name, version and all parameters, as part of a cell's key."""
    return description_of(kind, _build(kind, spec))


def description_of(kind: str, entry: Entry) -> dict[str, Any]:
    """The description of an entry built by `build`."""
    name = entry._name  # type: ignore[attr-defined]
    found, _ = find(kind, name)
    out: dict[str, Any] = {"name": name, "version": found.card.version}
    hints = get_type_hints(type(entry))
    for key, value in entry.parameters().items():
        raw = getattr(entry, key)
        nested = _nested_kind(hints[key])
        out[key] = description_of(nested, raw) if nested is not None and hasattr(raw, "_name") else value
    return out


@overload
def rebuild(kind: type[E], description: Mapping[str, Any]) -> E: ...
@overload
def rebuild(kind: str, description: Mapping[str, Any]) -> Entry: ...


def rebuild(kind: Any, description: Mapping[str, Any]) -> Any:
    """The entry of a description made by `describe`.

    Raises:
        ConfigError: when the description has another version of the entry.
    """

    def strip(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: strip(v) for k, v in value.items() if not (k == "version" and "name" in value)}
        return value

    found, _ = find(kind if isinstance(kind, str) else kind_of(kind).name, description["name"])
    if found.card.version != description.get("version"):
        raise ConfigError(
            f"{found.card.kind} {description['name']!r} is version {found.card.version} here, "
            f"the cell asks for {description.get('version')}"
        )
    return build(kind, strip(description))
