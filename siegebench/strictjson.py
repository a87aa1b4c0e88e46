"""JSON from strangers, read strictly: no key twice, no number that overflows, no text that is not Unicode, no depth."""

from __future__ import annotations

import json
import math
from typing import Any

from siegebench.errors import shortened

DEPTH = 40  # of mappings and lists inside each other


class Refused(ValueError):
    """A value that the schema refuses, with the path of the field."""

    def __init__(self, message: str, *loc: Any) -> None:
        super().__init__(message)
        self.loc = loc


def loads(content: bytes) -> Any:
    """The value in the bytes of a file.

    Raises:
        Refused: when it is not JSON, or holds what `plain` refuses.
    """
    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=_once, parse_int=_whole)
    except UnicodeDecodeError as error:
        raise Refused(f"byte {error.start} is not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise Refused(f"line {error.lineno}: not JSON: {error.msg}") from None
    except RecursionError:
        raise Refused("nested too deeply") from None
    plain(value)
    return value


def plain(value: Any, loc: tuple[Any, ...] = ()) -> None:
    """Refuse what no program may have to deal with: depth, numbers that overflow, text that is no text.

    Raises:
        Refused: with the path of the first one.
    """
    if len(loc) > DEPTH:
        raise Refused("nested too deeply", *loc[:4])
    if isinstance(value, str):
        if not _is_text(value):
            raise Refused(f"not Unicode text, found {shortened(value)}", *loc)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise Refused(f"expected a finite number, found {value}", *loc)
    elif isinstance(value, int):
        if abs(value) >= 2**64:
            raise Refused("expected a number below 2^64", *loc)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if not _is_text(key):
                raise Refused(f"the key {shortened(key)} is not Unicode text", *loc)
            plain(inner, (*loc, key))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            plain(inner, (*loc, i))


def _is_text(value: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in value) if not value.isascii() else True


def _whole(digits: str) -> int:
    """A whole number; one that `plain` refuses in place of thousands of digits, which Python does not read."""
    return int(digits) if len(digits) <= 25 else 2**64


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise Refused(f"the key {shortened(key)} appears twice")
        found[key] = value
    return found
