"""YAML with line numbers: strict loading, and `file:line:col` for any path inside a document."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from siegebench.errors import ConfigError, did_you_mean

Loc = tuple[Any, ...]


class _Strict(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys and keys that are not text (YAML 1.1 reads `no` as False)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        self.flatten_mapping(node)
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, bool) or not isinstance(key, (str, int)):
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is not text; put it in quotes", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


class Document:
    """A parsed YAML file that knows where each value stands.

    Raises:
        ConfigError: `file:line:col: ...` when it cannot be read or is not valid, strict YAML.
    """

    def __init__(self, text: str, name: str) -> None:
        self.name = name
        self._marks: dict[Loc, yaml.Mark] = {}
        self._overrides: list[tuple[Loc, str]] = []
        try:
            node = yaml.compose(text, Loader=_Strict)
            self.data: Any = yaml.load(text, Loader=_Strict)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
            raise ConfigError(f"{place}: {error.problem or error.context}") from None
        except yaml.YAMLError as error:  # characters that YAML does not allow
            raise ConfigError(f"{name}: not valid YAML: {str(error).splitlines()[0]}") from None
        except RecursionError:
            raise ConfigError(f"{name}: nested too deeply") from None
        if node is not None:
            self._walk(node, ())

    @classmethod
    def read(cls, path: Path) -> Document:
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ConfigError(f"{path}: is not UTF-8 text") from None
        return cls(text, str(path))

    def _walk(self, node: yaml.Node, loc: Loc) -> None:
        self._marks.setdefault(loc, node.start_mark)
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                self._marks[(*loc, key.value)] = key.start_mark
                self._walk(value, (*loc, key.value))
        elif isinstance(node, yaml.SequenceNode):
            for i, value in enumerate(node.value):
                self._walk(value, (*loc, i))

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
        """A ConfigError that begins with the place."""
        return ConfigError(f"{self.where(loc)}: {' '.join(message.split())}")

    def override(self, assignment: str) -> None:
        """Apply `a.b.0=value` (value read as YAML) before validation.

        Raises:
            ConfigError: when the path does not exist, with the nearest key.
        """
        path, equals, text = assignment.partition("=")
        if not equals or not path:
            raise ConfigError(f"--set {assignment}: expected PATH=VALUE, as in --set boards.0.seeds=[0,1]")
        try:
            value = yaml.load(text, Loader=_Strict)
        except yaml.YAMLError:
            raise ConfigError(f"--set {assignment}: {text!r} is not valid YAML") from None
        steps = path.split(".")
        here: Any = self.data
        loc: Loc = ()
        for i, raw in enumerate(steps):
            last = i == len(steps) - 1
            if isinstance(here, list):
                if not raw.isdigit() or int(raw) >= len(here):
                    raise ConfigError(
                        f"--set {assignment}: {'.'.join(steps[:i])} has {len(here)} items; "
                        f"expected a number below that, found {raw!r}"
                    )
                step: Any = int(raw)
            elif isinstance(here, Mapping):
                if raw not in here and not last:
                    raise ConfigError(f"--set {assignment}: no {raw!r} here. {did_you_mean(raw, map(str, here))}")
                if raw not in here and difflib.get_close_matches(raw, [str(k) for k in here], n=1, cutoff=0.75):
                    raise ConfigError(f"--set {assignment}: no {raw!r} here. {did_you_mean(raw, map(str, here))}")
                step = raw
            else:
                raise ConfigError(f"--set {assignment}: {'.'.join(steps[:i]) or 'the document'} has no parts")
            loc = (*loc, step)
            if last:
                here[step] = value
                self._overrides.append((loc, assignment))
            elif isinstance(here[step], str) and i == len(steps) - 2:
                here[step] = {"name": here[step]}  # attacks.0.steps=20 where attacks.0 is only a name
                here = here[step]
            else:
                here = here[step]
