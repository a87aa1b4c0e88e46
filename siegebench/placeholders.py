"""Placeholders of a suite: `$defense` on a board stands for the suite's key `defense`.

    defense: my_defense                 # or: siegebench run SUITE --set defense=my_defense
    boards:
      - track: white_box
        defenses: [none, $defense]

A board is left out if the key of its placeholder is not set, or if the entry is for other boards: an attack for the
track of its access and the norms of its threats, a defense for the tracks that it declares, a backdoor for a target or
for certifiers, a detector for inputs or for models, a certifier for the norms of the threats, a theft for what the
victim answers. Everything else about the entry is checked later, like any other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from siegebench import registry
from siegebench.errors import ConfigError
from siegebench.kinds import PLACED
from siegebench.threat import ThreatModel
from siegebench.types import (
    Attack,
    BackdoorAttack,
    Camouflage,
    Certifier,
    Defense,
    Entry,
    Leak,
    ModelDetector,
    Poisoning,
    Sharing,
    Theft,
)
from siegebench.yamlmarks import Document, Loc

KEYS = PLACED


def fill(document: Document) -> None:
    """Replace the placeholders of a suite, and remove the boards that its keys do not ask for.

    Raises:
        ConfigError: no key is set; a key that no placeholder asks for; an entry that fits no board.
    """
    data = document.data
    boards = data.get("boards")
    given = {key: data[key] for key in KEYS if data.get(key) is not None}
    found = [list(_find(board, ("boards", i))) for i, board in enumerate(boards if isinstance(boards, list) else [])]
    asked = sorted({key for places in found for key, _ in places}, key=KEYS.index)
    for key in given:
        if key not in asked:
            raise document.error((key,), f"{key} is given, and no board of this suite says ${key}")
    if not asked:
        return
    if not given:
        options = " or ".join(f"--set {key}=NAME" for key in asked)
        raise document.error((), f"nothing to evaluate yet: give an entry, {options}")
    entries = {key: _built(document, key, spec) for key, spec in given.items()}
    kept = [i for i, places in enumerate(found) if all(k in given and _fits(entries[k], boards[i]) for k, _ in places)]
    for key, entry in entries.items():
        if not any(key == k for i in kept for k, _ in found[i]):
            raise document.error((key,), f"{key} {entry._name!r} fits none of the boards of this suite")  # type: ignore[attr-defined]
    for i in kept:
        for key, loc in found[i]:
            document.put(loc, given[key], (key,))
        for loc in {loc[:-1] for _, loc in found[i] if isinstance(loc[-1], int)}:
            _without_repeats(document, loc)
    document.keep(("boards",), kept)


def _find(value: Any, loc: Loc) -> Iterator[tuple[str, Loc]]:
    """(key, position) of each placeholder inside a value."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _find(inner, (*loc, name))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _find(inner, (*loc, i))
    elif isinstance(value, str) and value.startswith("$") and value[1:] in KEYS:
        yield value[1:], loc


def _built(document: Document, key: str, spec: Any) -> Entry:
    try:
        return registry.build(key, spec)
    except ConfigError as error:
        raise document.error((key, *getattr(error, "loc", ())), str(error)) from None


def _fits(entry: Entry, board: Any) -> bool:
    """Whether a board is for such an entry; boards that are not valid are refused later."""
    if not isinstance(board, dict):
        return True
    track = str(board.get("track"))
    if isinstance(entry, Defense):
        return entry.ranked_in(track)
    norms = {threat.get("norm") for threat in board.get("threats") or () if isinstance(threat, dict)}
    if isinstance(entry, Attack):
        access = {
            "white_box": ("gradient",),
            "query": ("score", "label"),
            "transfer": ("gradient",) if board.get("surrogates") else ("none",),
        }.get(track)
        return bool(norms & set(entry.handles())) and (access is None or entry.access() in access)
    if isinstance(entry, BackdoorAttack):
        return "backdoors" in board and entry.aims == (track != "certified")
    if isinstance(entry, Poisoning):
        return "poisons" in board
    if isinstance(entry, Camouflage):
        return track == "camouflage"
    if isinstance(entry, Certifier):
        return bool(norms & entry.norms)
    if isinstance(entry, Theft):
        access = board.get("access", "score")
        return access in ("score", "label") and ThreatModel(access=access).grants(entry.access())
    if isinstance(entry, (Leak, Sharing)):
        return track == "privacy"
    return isinstance(entry, ModelDetector) == (track == "model_detection")


def _without_repeats(document: Document, loc: Loc) -> None:
    """Remove items that a list has twice because the entry already stands beside the placeholder."""
    items: Any = document.data
    for step in loc:
        items = items[step]
    normal = [item if isinstance(item, dict) else {"name": item} for item in items]
    document.keep(loc, [i for i, item in enumerate(normal) if item not in normal[:i]])
