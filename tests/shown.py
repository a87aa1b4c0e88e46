"""The commands that the pages show, and the same runs on small numbers."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from siegebench import placeholders, registry
from siegebench.config import Suite
from siegebench.kinds import KINDS
from siegebench.types import Entry

ROOT = Path(__file__).resolve().parent.parent
# not CHANGELOG.md: it also tells of commands that are gone
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMAND = re.compile(r"siegebench( \S.*)?|make [\w-]+( [A-Z]+=\S+)*( +#.*)?|(?:python|pip|ray) \S.*")
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
SHELL = ("", "console", "bash", "sh")  # languages of blocks with commands


@dataclass(frozen=True)
class Shown:
    """A command on a page.

    Attributes:
        typed: stands in a block, to be typed as it is; otherwise in a sentence, where it may be a name alone
            (`siegebench scan`) or end with an option.
    """

    text: str
    typed: bool

    @property
    def words(self) -> list[str]:
        return shlex.split(re.split(r"\s#", self.text)[0])


def commands(page: Path) -> list[Shown]:
    """All commands of a page, each one once: in fenced and indented blocks, then in sentences."""
    text = re.sub(r"\\\n\s*", "", page.read_text(encoding="utf-8"))  # a command may go on in the next line
    prose = FENCED.sub("", text)
    blocks = [body for language, body in FENCED.findall(text) if language in SHELL]
    blocks += [line.strip() for line in prose.splitlines() if line.startswith("    ")]
    typed = [line.strip() for body in blocks for line in body.splitlines()]
    told = [" ".join(found.split()) for found in INLINE.findall(prose)]
    out = {text: Shown(text, True) for text in typed if COMMAND.fullmatch(text)}
    return [*out.values(), *(Shown(t, False) for t in dict.fromkeys(told) if COMMAND.fullmatch(t) and t not in out)]


# ------------------------------------------------------------------------------------------------------ small numbers


def smaller(suite: Suite, wanted: set[str]) -> dict[str, Any]:
    """A suite as a document, with few images, one seed and one threat, and only the wanted entries, made quick.

    Args:
        wanted: names of entries; a list with none of them keeps its first two.
    """
    whole = suite.model_dump(mode="json", exclude_unset=True, by_alias=True, exclude=set(placeholders.KEYS))
    for one in (whole, *whole["boards"]):
        one.update(_fewer(one))
        slots = {"models": "model"} if one is whole else next(b.slots for b in suite.boards if b.track == one["track"])
        for slot, kind in slots.items():
            specs = one.get(slot) or []
            named = [spec for spec in specs if {name.partition(".")[0] for name in _names(spec)} & wanted]
            kept = (named or specs[:2]) if slot != "models" else specs[:1]
            if slot in one and one[slot] is not None:
                one[slot] = [quick(kind, spec) for spec in kept]
        if isinstance(one.get("search"), (dict, str)) and one["search"] != "none":
            one["search"] = quick("attack", one["search"])
    return whole


MOST = {"queries": 100, "clean": 1, "scenes": 6, "ss": 1}  # of a board: queries, clean models, scenes and their detail


def _fewer(part: Mapping[str, Any]) -> dict[str, Any]:
    first = ("seeds", "train_seeds", "severities", "queries")
    out: dict[str, Any] = {key: part[key][:1] for key in first if part.get(key) and isinstance(part[key], list)}
    if part.get("threats"):  # each attack must find a norm that it handles
        out["threats"] = [*{threat["norm"]: threat for threat in reversed(part["threats"])}.values()]
    for key, most in MOST.items():
        value = out.get(key, part.get(key))
        if value:
            out[key] = [min(value[0], most)] if isinstance(value, list) else min(value, most)
    if part.get("data"):
        out["data"] = {**part["data"], "count": min(part["data"].get("count") or 12, 12)}
        out["data"]["train"] = min(out["data"].get("train") or 300, 300)
        drawn = out["data"].get("set")
        if isinstance(drawn, dict) and str(drawn.get("name")).startswith("vehicle_scenes"):  # each image is rendered
            out["data"] |= {"set": {**drawn, "train": 24, "test": 30}, "train": 24}
    if part.get("track") == "privacy":
        out["client"] = {**(part.get("client") or {}), "gallery": 50}  # public images come from the training set
    return out


def _names(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key in ("name", "attack", "corruption"):
            yield from _names(value.get(key))


def quick_attacks() -> Iterator[tuple[type[Entry], tuple[dict[str, Any], ...]]]:
    """The defenses and certifiers, with the attacks that they declare against themselves, made quick."""
    for kind in ("defense", "certifier"):
        for name in registry.names(kind):
            entry = registry.entry_class(kind, name)
            yield entry, tuple(quick("attack", spec) for spec in getattr(entry, "adaptive", ()))


def quick(kind: str, spec: Any) -> dict[str, Any]:
    """A spec with the small numbers that contract tests use; a network is trained for one epoch."""
    entry: Entry = registry.build(KINDS[kind].base_class(), spec)
    low = entry.quick()
    if "train" in registry.find(kind, registry.normal(spec)["name"])[0].card.sees and "images" in vars(low):
        low = replace(low, images=vars(entry)["images"])  # the training set is small as it is
    changed = {f.name: getattr(low, f.name) for f in fields(entry) if getattr(entry, f.name) != getattr(low, f.name)}
    smaller, whole = low.parameters(), entry.parameters()
    changed = {name: smaller.get(name, value) for name, value in changed.items()}
    for name, value in changed.items():
        if isinstance(value, Mapping) and "name" in value:  # a nested entry, which forgot under which name it was built
            changed[name] = {**value, "name": whole[name]["name"]}
    given = registry.normal(spec)
    if kind == "model" and not getattr(entry, "pretrained", bool)():
        usual = whole.get("recipe") or {}
        changed["recipe"] = {
            **(usual if isinstance(usual, Mapping) else {}),
            **(given.get("recipe") or {}),
            "epochs": 1,
        }
    return {**given, **changed}
