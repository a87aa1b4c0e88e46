"""YAML with line numbers: strict loading, and `file:line:col` for any path inside a document."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from siegebench.errors import ConfigError, did_you_mean, quoted, shortened

Loc = tuple[Any, ...]
MOST = 100_000  # largest number of values in a document, with aliases expanded
_TEXT, _MERGE = (f"tag:yaml.org,2002:{kind}" for kind in ("str", "merge"))


class Document:
    """A parsed YAML file with the position of each value.

    Strict: duplicate keys and keys that are not text are errors (YAML 1.1 reads `no` as False).

    Raises:
        ConfigError: `file:line:col: ...` when it cannot be read or is not valid, strict YAML.
    """

    def __init__(self, text: str, name: str) -> None:
        self.name = name
        self._marks: dict[Loc, yaml.Mark] = {}
        self._overrides: list[tuple[Loc, str]] = []
        try:
            loader = yaml.SafeLoader(text)
            node = loader.get_single_node()
            if node is not None:
                self._walk(node, ())  # before construction, because it refuses aliases that expand too much
            self.data: Any = None if node is None else loader.construct_document(node)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            raise self._fault(f"not valid YAML: {error.problem or error.context}", mark) from None
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            raise ConfigError(f"{name}:{line}: not valid YAML: character #x{error.character:04x}") from None
        except (
            ValueError,
            TypeError,
            AttributeError,
        ) as error:  # an invalid date or number
            raise ConfigError(f"{name}:1:1: not valid YAML: {error}; put it in quotes") from None
        except RecursionError:
            raise ConfigError(f"{name}:1:1: nested too deeply, or an alias that contains itself") from None
        self._plain(self.data, ())

    @classmethod
    def read(cls, path: Path) -> Document:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
        try:
            return cls(content.decode("utf-8-sig"), str(path))
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            raise ConfigError(f"{path}:{line}: byte 0x{content[error.start]:02x} is not UTF-8 text") from None

    def _fault(self, message: str, mark: yaml.Mark | None) -> ConfigError:
        position = f"{mark.line + 1}:{mark.column + 1}" if mark else "1:1"
        return ConfigError(f"{self.name}:{position}: {' '.join(message.split())}")

    def _walk(self, node: yaml.Node, loc: Loc) -> None:
        if len(self._marks) > MOST:  # aliases of aliases grow like 2^depth
            raise ConfigError(f"{self.name}:1:1: more than {MOST:,} values once its aliases are written out")
        self._marks.setdefault(loc, node.start_mark)
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                if key.tag not in (_TEXT, _MERGE):
                    shown = shortened(key.value) if isinstance(key, yaml.ScalarNode) else "of several values"
                    raise self._fault(f"key {shown} is not text; put it in quotes", key.start_mark)
                if key.value in seen:
                    raise self._fault(f"key {shortened(key.value)} appears twice", key.start_mark)
                seen.add(key.value)
                self._marks[(*loc, key.value)] = key.start_mark
                self._walk(value, (*loc, key.value))
        elif isinstance(node, yaml.SequenceNode):
            for i, value in enumerate(node.value):
                self._walk(value, (*loc, i))

    def _plain(self, value: Any, loc: Loc) -> None:
        """Refuse values that suites, cards and rows cannot contain, because they cannot be part of a key."""
        if isinstance(value, dict):
            for key, inner in value.items():
                self._plain(inner, (*loc, key))
        elif isinstance(value, list):
            for i, inner in enumerate(value):
                self._plain(inner, (*loc, i))
        elif isinstance(value, float) and not math.isfinite(value):
            raise self.error(loc, f"expected a finite number, found {value}")
        elif isinstance(value, int) and abs(value) >= 2**64:
            raise self.error(loc, f"expected a number below 2^64, found {shortened(value)}")
        elif value is not None and not isinstance(value, (str, int, float)):
            raise self.error(loc, f"YAML reads this as a {type(value).__name__}; put it in quotes if it is text")

    def where(self, loc: Sequence[Any]) -> str:
        """`file:line:col` of the deepest known step of a path; steps that the file does not have are skipped."""
        kept: Loc = ()
        for step in loc:
            if (*kept, step) in self._marks or any(k[: len(kept) + 1] == (*kept, step) for k, _ in self._overrides):
                kept = (*kept, step)
        for override, text in reversed(self._overrides):
            if kept[: len(override)] == override:
                return f"--set {text}"
        mark = self._marks.get(kept)
        return f"{self.name}:{mark.line + 1}:{mark.column + 1}" if mark else f"{self.name}:1:1"

    def error(self, loc: Sequence[Any], message: str) -> ConfigError:
        """A ConfigError that begins with the position."""
        return ConfigError(f"{self.where(loc)}: {' '.join(message.split())}")

    def rename(self, loc: Sequence[Any], old: str, new: str) -> None:
        """Give a key of the mapping at `loc` another name; its position stays known."""
        here = self.data
        for step in loc:
            here = here[step]
        here[new] = here.pop(old)
        before = (*loc, old)
        for place, mark in list(self._marks.items()):
            if place[: len(before)] == before:
                self._marks[*loc, new, *place[len(before) :]] = mark
        self._overrides = [
            ((*loc, new, *place[len(before) :]) if place[: len(before)] == before else place, text)
            for place, text in self._overrides
        ]

    def put(self, loc: Sequence[Any], value: Any, origin: Loc) -> None:
        """Set the value at `loc` of a value that stands at `origin`, which errors then name."""
        here = self.data
        for step in loc[:-1]:
            here = here[step]
        here[loc[-1]] = value
        for place, mark in list(self._marks.items()):
            if place[: len(origin)] == origin:
                self._marks[*loc, *place[len(origin) :]] = mark
        told = [(place, text) for place, text in self._overrides if place[: len(origin)] == origin]
        self._overrides += [((*loc, *place[len(origin) :]), text) for place, text in told]

    def keep(self, loc: Loc, indices: Sequence[int]) -> None:
        """Keep only these items of the list at `loc`; the positions of the others stay known."""
        here = self.data
        for step in loc:
            here = here[step]
        here[:] = [here[i] for i in indices]
        new, depth = {old: i for i, old in enumerate(indices)}, len(loc)

        def moved(place: Loc) -> Loc | None:
            if place[:depth] != loc or len(place) == depth:
                return place
            return (*loc, new[place[depth]], *place[depth + 1 :]) if place[depth] in new else None

        self._marks = {m: mark for place, mark in self._marks.items() if (m := moved(place)) is not None}
        self._overrides = [(m, text) for place, text in self._overrides if (m := moved(place)) is not None]

    def override(self, assignment: str) -> None:
        """Apply `a.b.0=value` (value read as YAML) before validation.

        Raises:
            ConfigError: when the path does not exist, with the nearest key.
        """
        path, equals, text = assignment.partition("=")
        assignment = quoted(assignment)
        if not equals or not path:
            raise ConfigError(f"--set {assignment}: expected PATH=VALUE, as in --set boards.0.seeds=[0,1]")
        value = Document(text, f"--set {assignment}").data
        steps = path.split(".")
        here: Any = self.data
        loc: Loc = ()
        for i, raw in enumerate(steps):
            last = i == len(steps) - 1
            if isinstance(here, list):
                if not raw.isdigit() or int(raw) >= len(here):
                    raise ConfigError(
                        f"--set {assignment}: {quoted('.'.join(steps[:i]))} has {len(here)} items; "
                        f"expected a number below that, found {shortened(raw)}"
                    )
                step: Any = int(raw)
            elif isinstance(here, Mapping):
                if raw not in here and not last:
                    raise ConfigError(
                        f"--set {assignment}: no {shortened(raw)} here. {did_you_mean(raw, map(str, here))}"
                    )
                if raw not in here and difflib.get_close_matches(raw, [str(k) for k in here], n=1, cutoff=0.75):
                    raise ConfigError(
                        f"--set {assignment}: no {shortened(raw)} here. {did_you_mean(raw, map(str, here))}"
                    )
                step = raw
            else:
                raise ConfigError(f"--set {assignment}: {quoted('.'.join(steps[:i])) or 'the document'} has no parts")
            loc = (*loc, step)
            if last:
                here[step] = value
                self._overrides.append((loc, assignment))
            elif isinstance(here[step], str) and i == len(steps) - 2:
                here[step] = {"name": here[step]}  # attacks.0.steps=20, where attacks.0 is only a name
                self._overrides.append((loc, assignment))
                here = here[step]
            else:
                here = here[step]
