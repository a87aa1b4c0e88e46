"""What the source of an entry says about it: parameters, class attributes, docstrings. Imports no entry."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import Any

from siegebench.errors import ConfigError
from siegebench.kinds import KINDS
from siegebench.registry import find


@cache
def _source(kind: str, name: str) -> list[ast.ClassDef]:
    """The source of an entry's class, after its bases that have parameters; imports nothing."""
    found, _ = find(kind, name)
    module, _, attribute = found.card.entry.partition(":")
    try:
        classes = {**_shared(kind), **_classes(found.path.parent / f"{module}.py")}
    except SyntaxError as error:
        where = f"{error.filename}:{error.lineno}"
        raise ConfigError(f"{where}: entry {found.card.entry!r} cannot be read: SyntaxError: {error.msg}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{found.path}: entry: {module}.py cannot be read: {error}") from None

    def collect(cls: ast.ClassDef) -> list[ast.ClassDef]:
        bases = [classes[base.id] for base in cls.bases if isinstance(base, ast.Name) and base.id in classes]
        return [*(c for base in bases for c in collect(base)), cls]

    return collect(classes[attribute]) if attribute in classes else []


def _shared(kind: str) -> dict[str, ast.ClassDef]:
    """The base classes of a kind in siegebench.types that have parameters of their own."""
    path = Path(__file__).parent / "types" / f"{KINDS[kind].plural}.py"
    return {name: node for name, node in _classes(path).items() if node.decorator_list} if path.is_file() else {}


def _classes(path: Path, importers: tuple[Path, ...] = ()) -> dict[str, ast.ClassDef]:
    """The classes of a file, and of the files beside it that it imports as `from .file import ...`."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    froms = [node.module for node in tree.body if isinstance(node, ast.ImportFrom) and node.level == 1]
    beside = [path.with_name(f"{module}.py") for module in froms]
    imported = [_classes(p, (*importers, path)) for p in beside if p.is_file() and p not in (*importers, path)]
    own = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    return {name: node for classes in (*imported, own) for name, node in classes.items()}


def _assignments(kind: str, name: str) -> list[ast.AnnAssign | ast.Assign]:
    """The assignments in the body of an entry's class, after those of its bases."""
    return [node for cls in _source(kind, name) for node in cls.body if isinstance(node, (ast.AnnAssign, ast.Assign))]


def docstrings(kind: str, name: str) -> list[str]:
    """The docstrings of an entry's class and of its bases, read from the source; its own first."""
    return [said for cls in reversed(_source(kind, name)) if (said := ast.get_docstring(cls))]


def parameters(kind: str, name: str) -> dict[str, dict[str, Any]]:
    """Fields of an entry with their types and defaults, read from the source."""
    out: dict[str, dict[str, Any]] = {}
    for node in _assignments(kind, name):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            annotation = ast.unparse(node.annotation)
            if "ClassVar" not in annotation:
                default = None if node.value is None else ast.unparse(node.value)
                out[node.target.id] = {"type": annotation, "default": default}
    for key, value in find(kind, name)[1].items():
        out.setdefault(key, {"type": "any"})["default"] = repr(value)
    return out


def declared(kind: str, name: str) -> dict[str, Any]:
    """Class attributes of an entry (`needs`, `norms`, `randomized`, ...), read from the source."""
    out: dict[str, Any] = {}
    for node in _assignments(kind, name):
        targets: list[ast.expr]
        if isinstance(node, ast.AnnAssign):
            targets = [node.target] if "ClassVar" in ast.unparse(node.annotation) else []
        else:
            first = node.targets[0]
            targets = list(first.elts) if isinstance(first, ast.Tuple) else [first]
        if node.value is None or not targets:
            continue
        several = len(targets) > 1 and isinstance(node.value, ast.Tuple)
        values = node.value.elts if several and isinstance(node.value, ast.Tuple) else [node.value] * len(targets)
        for target, value in zip(targets, values, strict=True):
            try:
                out[ast.unparse(target)] = ast.literal_eval(value)
            except ValueError:
                out[ast.unparse(target)] = ast.unparse(value)
    return out
