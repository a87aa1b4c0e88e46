"""What the names on a page mean: the summaries of the cards, of data too, and the meanings of flags."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any

from siegebench import registry, signatures
from siegebench.cells import SLOTS, Result
from siegebench.errors import ConfigError
from siegebench.kinds import KINDS


class Glossary:
    """The entries, data and flags that the rows of a page name.

    Attributes:
        entries: those with a card, sorted: `{kind, name, summary, paper, anchor}`.
        flags: `{id, meaning, anchor}`.
    """

    def __init__(self, rows: Iterable[Result], flags: Iterable[str]) -> None:
        rows = list(rows)
        named = {
            (slot, part)
            for row in rows
            for slot in SLOTS
            if (description := getattr(row.cell, slot)) is not None
            for part in _parts(description)
        }
        named |= {("dataset", str((row.cell.data.get("source") or {}).get("name"))) for row in rows}
        cards = {key: card for key in sorted(named) if (card := _card(*key)) is not None}
        self.entries = [
            {"kind": KINDS[kind].name.replace("_", " "), "name": name, **card, "anchor": f"about-{i}"}
            for i, ((kind, name), card) in enumerate(cards.items())
        ]
        self._anchor = dict(zip(cards, (entry["anchor"] for entry in self.entries), strict=True))
        self._named = {name: entry for (_, name), entry in zip(cards, self.entries, strict=True)}
        meanings = meaning_of_flags()
        self.flags = [
            {"id": name, "meaning": meanings[name], "anchor": f"flag-{name}"} for name in sorted({*flags} & {*meanings})
        ]

    def anchor(self, kind: str, description: Mapping[str, Any] | None) -> str:
        """Where an entry is explained; empty if it is not."""
        return self._anchor.get((kind, str((description or {}).get("name"))), "")

    def summary(self, title: str) -> str:
        """The summary of the entry in a column title such as `pgd (steps=50)` or `eot(apgd)`; empty if unknown."""
        return str(self._named.get(title.partition(" ")[0].partition("(")[0], {}).get("summary", ""))

    def flag(self, id: str) -> str:
        """Where a flag is explained; empty if it is not."""
        return f"flag-{id}" if id in meaning_of_flags() else ""


def _parts(description: Mapping[str, Any]) -> Iterable[str]:
    """The name of an entry, and of the attack inside."""
    yield str(description.get("name"))
    inner = description.get("attack")
    if isinstance(inner, Mapping):
        yield from _parts(inner)


def _card(kind: str, name: str) -> dict[str, str] | None:
    if kind not in KINDS:
        return None
    try:
        card = registry.find(kind, name)[0].card
    except ConfigError:
        return None
    return {"summary": card.summary, "paper": card.paper}


def meaning_of_figure(slot: str, name: str, figure: str) -> str:
    """What a figure of a measure or study means: from the docstring of its class, else the summary of its card."""
    if (slot, name) not in registry.cards():
        return ""
    told = _figures(slot, name, id(registry.cards()))
    family = figure.partition("@")[0]
    found = next((meaning for pattern, meaning in told if re.fullmatch(pattern, family)), "")
    return found or f"A figure of {name}: {registry.cards()[slot, name].card.summary}"


@lru_cache(maxsize=256)
def _figures(slot: str, name: str, cards: int) -> list[tuple[str, str]]:
    """(pattern, meaning) of the figures that docstrings list as `name, other_name    meaning`, exact names first.

    Capital letters and dots stand for any word: `METHOD_deletion`, `..._relative`.
    """
    exact, wild = list[tuple[str, str]](), list[tuple[str, str]]()
    try:
        docstrings = signatures.docstrings(slot, name)
    except ConfigError:  # a card of another package may name a file that does not exist
        docstrings = []
    for docstring in docstrings:
        text = docstring.partition("\nAttributes:")[0]
        for names, first, rest in re.findall(r"^ {4}(\S+(?:, \S+)*) {2,}(\S.*)((?:\n {6,}\S.*)*)", text, re.MULTILINE):
            meaning = " ".join(f"{first} {rest}".split())
            for word in names.split(", "):
                pattern = re.sub(r"[A-Z]+|\\\.\\\.\\\.", lambda _: r"\w+", re.escape(word))
                if word.strip(".") and re.fullmatch(r"[\w.]+", word):
                    (exact if pattern == word else wild).append((pattern, meaning))
    return exact + wild


@cache
def meaning_of_flags() -> Mapping[str, str]:
    """The tables of docs/flags.md, as `make docs` writes them."""
    found: dict[str, str] = json.loads(files(__package__).joinpath("flags.json").read_text(encoding="utf-8"))
    return found
