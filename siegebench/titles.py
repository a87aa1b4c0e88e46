"""Names for display that tell apart what is shown together: cells, and descriptions of entries. Needs no torch."""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from siegebench import registry, signatures
from siegebench.cells import SLOTS, Cell, canonical, digest, label, untrained
from siegebench.errors import ConfigError
from siegebench.threat import parse_number

NOUNS = {"sequence": "sequence", "events": "film", "text": "text"}  # by kind of data


def noun(data: Mapping[str, Any]) -> str:
    """What one input of the data of a cell is called: `image`, `sequence`, `film` or `text`."""
    return NOUNS.get(str(data.get("kind", "image")), "image")


def titles(cells: Sequence[Cell]) -> dict[str, str]:
    """A title of each cell, by its key. Cells that would share one name the parameters in which they differ.

    `white_box: resnet18 / none / pgd(restarts=5, steps=50) / linf 8/255 (seed 0)`; a parameter is left out where it has
    the default of the entry.
    """
    names: dict[str, dict[str, str]] = {
        slot: display(slot, [untrained(d) for cell in cells if (d := getattr(cell, slot)) is not None])
        for slot in SLOTS
    }

    def title(cell: Cell) -> str:
        shown = {k: v for k, v in cell.labels.items() if k != "data"}
        for slot in SLOTS:
            if (description := getattr(cell, slot)) is not None:
                shown[slot] = names[slot][canonical(untrained(description))]
        return f"{cell.track}: {' / '.join(shown.values())} (seed {cell.seed})"

    out = {cell.key: title(cell) for cell in cells}
    # what still looks alike differs in its data, surrogates or rights
    twice = {text for text, n in Counter(out.values()).items() if n > 1}
    data = {cell.key: f"{cell.data['split']} {cell.data['count']} of {cell.data['name']}" for cell in cells}
    out = {key: f"{text}, {data[key]}" if text in twice else text for key, text in out.items()}
    twice = {text for text, n in Counter(out.values()).items() if n > 1}
    return {key: f"{text} #{key[:6]}" if text in twice else text for key, text in out.items()}


def display(kind: str, descriptions: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """A unique name of each description, by its canonical JSON: `pgd`, `pgd(steps=50)`.

    Args:
        kind: of the entries.
    """
    alike: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for description in descriptions:
        alike[label(description)][canonical(description)] = leaves(description)
    out: dict[str, str] = {}
    for name, same in alike.items():
        varying = telling(same.values())
        for key, values in same.items():
            usual = leaves(_defaults(kind, values.get("name"))) if varying else {}
            other = [k for k in varying if k in values and not (k in usual and _equal(usual[k], values[k]))]
            shown = ", ".join(f"{k}={_short(values[k])}" for k in other)
            out[key] = f"{name}({shown})" if shown else name
    twice = {text for text, n in Counter(out.values()).items() if n > 1}
    return {key: f"{text} #{digest(key)[:6]}" if text in twice else text for key, text in out.items()}


def telling(alike: Iterable[Mapping[str, Any]]) -> list[str]:
    """The keys in which mappings differ; without hashes of files where the others are enough."""
    alike = list(alike)
    varying = sorted({k for v in alike for k in v if len({canonical(o.get(k)) for o in alike}) > 1})
    readable = [k for k in varying if k.rpartition(".")[2] != "sha256"]
    return readable if len({canonical([v.get(k) for k in readable]) for v in alike}) == len(alike) else varying


def changed(kind: str, description: Mapping[str, Any]) -> str:
    """The parameters of an entry that are not its defaults: `availability=4, nesting=2`; empty for an unknown entry."""
    usual = leaves(_defaults(kind, description.get("name")))
    own = {k: v for k, v in leaves(description).items() if k in usual and not _equal(usual[k], v)}
    return ", ".join(f"{k}={_short(v)}" for k, v in own.items())


def preset(description: Mapping[str, Any], varying: Sequence[str]) -> str | None:
    """`crown.crown_ibp` or `crown`: the preset, or the entry, that gives these parameters these values and most others.

    Args:
        varying: the paths of the parameters to look at; what a card does not say, such as a hash, gives None.
    """
    name = str(description.get("name"))
    kinds = [kind for kind, known in registry.cards() if known == name]
    if len(kinds) != 1:
        return None
    found, usual, own = registry.cards()[kinds[0], name].card, leaves(_defaults(kinds[0], name)), leaves(description)
    agree: dict[str, int] = {}
    for called, given in [*((f"{name}.{key}", params) for key, params in found.presets.items()), (name, {})]:
        values = {**usual, **leaves(found.params), **leaves(given)}
        same = {k for k in own if k in values and _equal(values[k], own[k])}
        if same >= set(varying):
            agree[called] = len(same)
    return max(agree, key=lambda called: agree[called], default=None)  # the first of equals, a preset


def leaves(value: Any, name: str = "") -> dict[str, Any]:
    """The values of a nested mapping by dotted path; nested entries without their own name in the path."""
    if isinstance(value, Mapping):
        inner = [leaves(value[key], f"{name}.{key}" if name else str(key)) for key in value]
        return {k: v for part in inner for k, v in part.items()}
    return {name: value}


def _defaults(kind: str, name: Any) -> dict[str, Any]:
    """The default parameters of an entry as far as its source says them; none for an unknown entry."""
    out: dict[str, Any] = {}
    try:
        for key, found in signatures.parameters(kind, str(name)).items():
            try:
                out[key] = ast.literal_eval(found["default"])
            except (ValueError, TypeError, SyntaxError):
                continue  # a constant or a nested entry: not known here
    except ConfigError:
        return {}
    return out


def _equal(one: Any, other: Any) -> bool:
    """Whether a default is what is stored."""
    try:
        if isinstance(one, tuple):
            one = list(one)  # as it is stored
        return one == other or (isinstance(one, str) and parse_number(one) == other)
    except ValueError:
        return False


def _short(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else canonical(value)
    return text if len(text) <= 24 else f"{text[:21]}..."
