"""The command that makes a row once more. Needs no torch."""

from __future__ import annotations

import shlex
from functools import lru_cache

from siegebench import registry
from siegebench.cells import Result
from siegebench.errors import ConfigError


def again(row: Result) -> str | None:
    """The command that makes a row once more; None if it came from Python or does not say its suite."""
    origin, model = row.given.get("suite"), str(row.cell.model.get("name"))
    if not origin or not known("model", model):
        return None
    words = ["siegebench", "run", str(origin["name"])]
    for assignment in origin.get("set", ()):
        words += ["--set", str(assignment)]
    return shlex.join([*words, "--only", row.cell.key[:16], "--store", "again"])


@lru_cache(maxsize=4096)
def _found(kind: str, name: str, cards: int) -> bool:
    try:
        registry.find(kind, name)
    except ConfigError:
        return False
    return True


def known(kind: str, name: str) -> bool:
    """Whether an entry can stand where one of a kind is expected."""
    return _found(kind, name, id(registry.cards()))


def by_hand(row: Result) -> str:
    """Why there is no such command."""
    model = str(row.cell.model.get("name"))
    if not known("model", model):
        return f"it was made from Python, by sb.evaluate with a model called {model!r}"
    return "it does not say its suite, because an earlier version made it; run that suite with --store again"
