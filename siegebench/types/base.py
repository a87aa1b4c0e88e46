"""Entry: what every registered thing is, and the types of its fields."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, ConfigDict, Field

from siegebench.threat import parse_number

# Types for the fields of entries: checked when an entry is built from a suite, a card or the command line.
Count = Annotated[int, Field(ge=1, strict=True)]
Class = Annotated[int, Field(ge=0, strict=True)]  # a label
Number = Annotated[float, BeforeValidator(parse_number)]  # also text such as 2/255
Positive = Annotated[float, BeforeValidator(parse_number), Field(gt=0)]
Share = Annotated[float, BeforeValidator(parse_number), Field(ge=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class Entry(ABC):
    """A registered thing. Its fields are its parameters; the constructor only stores them.

    Class attributes:
        local: fields that say where something lies (a folder, a file). They do not decide a number and stay out of
            keys and rows; what they point to goes in by its hash.
    """

    local: ClassVar[tuple[str, ...]] = ()

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    def identity(self) -> dict[str, Any]:
        """What decides the outcome besides the parameters, such as the sha256 of a file; goes into the key."""
        return {}

    def parameters(self) -> dict[str, Any]:
        """The fields as plain data, nested entries by name, as they go into a key and a row."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.name not in self.local}


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
