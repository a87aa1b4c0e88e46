"""Completion of names in the shell. Imports no entry and no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from siegebench import registry
from siegebench.bundled import bundled_suites
from siegebench.errors import SiegeError
from siegebench.kinds import KINDS

FORMATS = ("table", "html", "md", "csv", "json", "lm_eval", "png")
LISTED = (*(kind.plural for kind in KINDS.values()), "suites")


def entries(incomplete: str) -> list[str]:
    """Entries and their presets."""
    return _starting(incomplete, _entries)


def anything(incomplete: str) -> list[str]:
    """Entries, presets and bundled suites."""
    return _starting(incomplete, lambda: [*_entries(), *(path.stem for path in bundled_suites())])


def suites(incomplete: str) -> list[str]:
    """Bundled suites, and YAML files and folders where the path begins."""
    return _starting(incomplete, lambda: [*(path.stem for path in bundled_suites()), *_files(incomplete)])


def formats(incomplete: str) -> list[str]:
    """Formats of a report."""
    return _starting(incomplete, lambda: FORMATS)


def lists(incomplete: str) -> list[str]:
    """What `siegebench list` lists."""
    return _starting(incomplete, lambda: LISTED)


def _entries() -> list[str]:
    out = [f"{found.name}.{preset}" for found in registry.cards().values() for preset in found.card.presets]
    return [*(name for _, name in registry.cards()), *out]


def _files(incomplete: str) -> list[str]:
    folder = Path(incomplete).parent if not incomplete.endswith("/") else Path(incomplete)
    found = [p for p in folder.iterdir() if p.suffix in (".yaml", ".yml") or (p.is_dir() and p.name[:1] != ".")]
    return [f"{p}/" if p.is_dir() else str(p) for p in found]


def _starting(incomplete: str, known: Callable[[], Iterable[str]]) -> list[str]:
    try:
        return sorted({name for name in known() if name.startswith(incomplete)})
    except (SiegeError, OSError):  # a broken card is told by the command, not while one types
        return []
