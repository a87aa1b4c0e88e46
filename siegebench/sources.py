"""Hashes of the source of entries. A row stores those of its entries, so that it is known when their code has changed.

The hash of an entry covers its Python file and every file that it imports from the folders of entries, or from its own
package; not the harness, whose changes raise `cells.PROTOCOL`. Comments, blank lines and docstrings do not count. Rows
of earlier versions have no hashes; they are used as they are, because nobody can tell. Needs no torch.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from siegebench import registry
from siegebench.card import Registered
from siegebench.cells import SLOTS, Cell, digest, source_of
from siegebench.errors import ConfigError
from siegebench.kinds import FOLDERS, KINDS

LENGTH = 16  # hexadecimal digits of a hash
IGNORED = ("ctx", "kind", "type_comment")  # fields of a syntax tree that do not change what the code does


def of(cell: Cell) -> dict[str, str]:
    """The hash of the entry in each slot of a cell, with the entries inside it; a model from Python has none."""
    slots = {slot: getattr(cell, slot) for slot in SLOTS}
    others: dict[str, Any] = {} if cell.inputs is None else {"inputs": source_of(cell.inputs)}
    others |= {"copy": cell.copy, "pool": cell.pool and cell.pool["source"]}
    return of_slots({**slots, "data": cell.data["source"], "surrogates": cell.surrogates, **others})


def of_slots(slots: Mapping[str, Any]) -> dict[str, str]:
    """The hashes of descriptions by slot; a slot may hold one description, several or None."""
    kinds = {"data": "dataset", "inputs": "dataset", "pool": "dataset", "surrogates": "model", "copy": "model"}
    out = {}
    for slot, found in slots.items():
        several = found if isinstance(found, list) else [found]
        hashes = [h for d in several if isinstance(d, Mapping) for h in _hashes(kinds.get(slot, slot), d)]
        if hashes:
            out[slot] = hashes[0] if len(hashes) == 1 else digest(hashes)[:LENGTH]
    return out


def changed(cell: Cell, stored: Mapping[str, str]) -> list[str]:
    """The entries whose source is another one than in the stored hashes of a row, such as `defense jpeg`."""
    found = differ(stored, of(cell)) if stored else []
    return [f"{slot} {cell.labels.get(slot, '')}".strip() for slot in found]


def differ(stored: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The slots that both have, with different hashes."""
    return [slot for slot, value in stored.items() if slot in now and now[slot] != value]


def check_loaded(cells: Iterable[Cell]) -> None:
    """Refuse to go on in a process that runs older code of an entry than its file has.

    Raises:
        ConfigError: with the file, when it was edited after this process read it.
    """
    entries = {
        (slot, description["name"])
        for cell in cells
        for slot in SLOTS
        if (description := getattr(cell, slot)) is not None and "answers" not in description
    }
    for path in sorted({file for kind, name in entries for file in _files_of(kind, name)}):
        if _read(path).hash != _file(path).hash:  # whatever its time says: clocks of files tick in milliseconds
            raise ConfigError(f"{path}: edited after this Python process loaded it; restart Python to run the new code")


def forget() -> None:
    """Read all files again; for tests."""
    _file.cache_clear()
    _entry.cache_clear()


# ------------------------------------------------------------------------------------------------------------- entries


def _hashes(kind: str, description: Mapping[str, Any]) -> Iterator[str]:
    """Hashes of an entry and of the entries among its parameters."""
    if "answers" in description:  # a model passed from Python; its code is part of its description
        return
    found = _find(kind, str(description["name"]))
    if found is not None:
        yield _entry(found.package, found.path.parent, found.card.entry.partition(":")[0])[0]
    for value in description.values():
        if isinstance(value, Mapping) and "name" in value and "version" in value:
            inner = [k for k in ("attack", *KINDS) if _find(k, str(value["name"])) is not None]
            yield from _hashes(inner[0] if inner else "attack", value)


def _find(kind: str, name: str) -> Registered | None:
    try:
        return registry.find(kind, name)[0]
    except ConfigError:  # a row of a package that is not installed here
        return None


def _files_of(kind: str, name: str) -> tuple[Path, ...]:
    found = _find(kind, name)
    return () if found is None else _entry(found.package, found.path.parent, found.card.entry.partition(":")[0])[1]


@cache
def _entry(package: str, folder: Path, module: str) -> tuple[str, tuple[Path, ...]]:
    """(hash of a module and of all that it imports of entries, their files)"""
    files: dict[Path, str] = {}
    todo = [folder / f"{module}.py"]
    while todo:
        path = todo.pop()
        if path in files or not path.is_file():
            continue
        files[path] = _file(path).hash
        todo += [f for dots, name in _file(path).imports for f in _candidates(dots, name, package, path.parent)]
    # by name and content, so that the folder of an installation does not count
    content = sorted((path.name, value) for path, value in files.items())
    return digest(content)[:LENGTH], tuple(sorted(files))


def _candidates(dots: int, module: str, package: str, folder: Path) -> Iterator[Path]:
    """Files that an imported name may stand for: in the folder of the importing file, or in its package."""
    if dots:
        bases, rest = [folder if dots == 1 else folder.parents[dots - 2]], module
    else:
        top, _, rest = module.partition(".")
        if top == "siegebench" and rest.partition(".")[0] not in FOLDERS:
            return
        if top not in ("siegebench", package.partition(".")[0]):
            return
        bases = _roots(top)
    for base in bases:
        target = base.joinpath(*rest.split(".")) if rest else base
        yield target.with_name(f"{target.name}.py")
        yield target / "__init__.py"


@cache
def _roots(top: str) -> list[Path]:
    import siegebench

    if top == "siegebench":  # in a checkout the folders of entries lie beside the package
        return [Path(path) for path in siegebench.__path__]
    spec = importlib.util.find_spec(top)
    return [Path(path) for path in (spec.submodule_search_locations or ())] if spec else []


# --------------------------------------------------------------------------------------------------------------- files


class _File(NamedTuple):
    hash: str
    imports: tuple[tuple[int, str], ...]  # (leading dots, dotted name)


@cache
def _file(path: Path) -> _File:
    """A file as this process found it first."""
    return _read(path)


def _read(path: Path) -> _File:
    return _understood(path.read_bytes())


@cache
def _understood(content: bytes) -> _File:
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):  # it cannot be imported either
        return _File(hashlib.sha256(content).hexdigest()[:LENGTH], ())
    text = "".join(_dump(tree))
    return _File(hashlib.sha256(text.encode()).hexdigest()[:LENGTH], tuple(_imports(tree)))


def _imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            yield node.level, base
            yield from ((node.level, ".".join(filter(None, (base, alias.name)))) for alias in node.names)


def _dump(node: Any) -> Iterator[str]:
    """A syntax tree as text, the same for all versions of Python that parse it alike; without docstrings."""
    if isinstance(node, ast.AST):
        yield f"{type(node).__name__}("
        for name in sorted(node._fields):
            value = getattr(node, name, None)
            if name == "body" and isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                value = node.body[ast.get_docstring(node, clean=False) is not None :]
            if value not in (None, []) and name not in IGNORED:
                yield f"{name}="
                yield from _dump(value)
        yield ")"
    elif isinstance(node, list):
        for item in node:
            yield from _dump(item)
            yield ","
    else:
        yield repr(node)
