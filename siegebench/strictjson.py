"""JSON from strangers, read strictly: no key twice, no number that overflows, no text that is not Unicode, no depth."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from pydantic import ValidationError

from siegebench.errors import shortened

DEPTH = 40  # of mappings and lists inside each other
STEPS = 12  # of a path that are told


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


def plain(value: Any, depth: int = 0) -> None:
    """Refuse what no program may have to deal with: depth, numbers that overflow, text that is no text.

    Raises:
        Refused: with the path of the first one.
    """
    if isinstance(value, str):
        if not _is_text(value):
            raise Refused(f"not Unicode text, found {shortened(value)}")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise Refused(f"expected a finite number, found {value}")
    elif isinstance(value, int):
        if abs(value) >= 2**64:
            raise Refused("expected a number below 2^64")
    elif isinstance(value, (dict, list)):
        if depth == DEPTH:
            raise Refused("nested too deeply")
        for at, inner in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(at, str) and not _is_text(at):
                raise Refused(f"the key {shortened(at)} is not Unicode text")
            try:
                plain(inner, depth + 1)
            except Refused as error:
                raise Refused(str(error), *(at, *error.loc)[:STEPS]) from None


def _is_text(value: str) -> bool:
    return value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value)


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


def first_fault(error: ValidationError) -> tuple[tuple[Any, ...], str]:
    """(path of the field, message) of the first error of pydantic."""
    first = error.errors(include_url=False)[0]
    raised = first.get("ctx", {}).get("error")
    loc = tuple(first["loc"])
    if isinstance(raised, Refused):
        return (*loc, *raised.loc), str(raised)
    if isinstance(raised, ValueError):
        return loc, str(raised)
    if first["type"] == "missing":
        return loc, "missing"
    if first["type"] == "extra_forbidden":
        return loc, "unknown key"
    if loc[-1:] in (("str",), ("int",)):  # the members of a union
        return loc[:-1], f"expected text, a number or nothing, found {shortened(first['input'])}"
    message = re.sub(r"^\w+ should (be|have|match pattern) | after validation.*", "", first["msg"])
    return loc, f"expected {message[:1].lower()}{message[1:]}, found {shortened(first['input'])}"
