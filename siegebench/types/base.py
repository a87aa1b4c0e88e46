"""Entry, the base class of everything registered, and the types of its fields."""

from __future__ import annotations

from abc import ABC
from dataclasses import Field as DataclassField
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import BeforeValidator, ConfigDict, Field

from siegebench.threat import parse_number

T = TypeVar("T")

# Types for the fields of entries: checked when an entry is built from a suite, a card or the command line.
Count = Annotated[int, Field(ge=1, strict=True)]
Class = Annotated[int, Field(ge=0, strict=True)]  # a label
Number = Annotated[float, BeforeValidator(parse_number)]  # also text such as 2/255
Positive = Annotated[float, BeforeValidator(parse_number), Field(gt=0)]
Share = Annotated[float, BeforeValidator(parse_number), Field(ge=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class Entry(ABC):
    """A registered object. Its fields are its parameters; the constructor only stores them.

    Class attributes:
        local: fields that say where something is (a folder, a file). They do not affect results and are not part of
            keys and rows; the files they name are included by their hash.
        added: fields that a later version added. They are part of a key only if they differ from their default, so
            that earlier rows stay valid.
    """

    local: ClassVar[tuple[str, ...]] = ()
    added: ClassVar[tuple[str, ...]] = ()

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    def identity(self) -> dict[str, Any]:
        """What affects the result besides the parameters, such as the sha256 of a file; part of the key."""
        return {}

    def quick(self) -> Self:
        """The same entry with small numbers, for contract tests. Override it when the fields have other names."""
        return lowered(self)

    def parameters(self) -> dict[str, Any]:
        """The fields as plain data, nested entries by name, as stored in keys and rows."""
        left_out = {*self.local, *(f.name for f in fields(self) if self._is_default(f))}
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.name not in left_out}

    def _is_default(self, f: DataclassField[Any]) -> bool:
        return f.name in self.added and bool(getattr(self, f.name) == f.default)


# fields that determine the run time of an entry, and their maximum in contract tests
QUICK = {
    "steps": 6, "iterations": 6, "queries": 50, "searches": 2, "restarts": 2, "targets": 3, "epochs": 1, "overlays": 8,
    "views": 6, "nearest": 3, "auxiliary_steps": 6, "images": 20,
}  # fmt: skip


def lowered(value: T) -> T:
    """A dataclass with the fields of QUICK lowered, including nested dataclasses."""
    changes: dict[str, Any] = {}
    for f in fields(value):  # type: ignore[arg-type]
        old = getattr(value, f.name)
        if isinstance(old, Entry):
            changes[f.name] = old.quick()
        elif is_dataclass(old) and not isinstance(old, type):
            changes[f.name] = lowered(old)
        elif type(old) is int and old > QUICK.get(f.name, old):
            changes[f.name] = QUICK[f.name]
    new: T = replace(value, **changes)  # type: ignore[type-var]
    if hasattr(value, "_name"):
        object.__setattr__(new, "_name", value._name)
    return new


def _plain(value: Any) -> Any:
    if isinstance(value, Entry):
        return {"name": getattr(value, "_name", type(value).__name__), **value.parameters()}
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    return value
