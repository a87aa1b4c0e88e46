"""`siegebench show`: an entry, a suite, or a stored row and the command that makes it again. Needs no torch."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from siegebench import registry, signatures
from siegebench.bundled import bundled_suites
from siegebench.cells import canonical
from siegebench.cli import complete
from siegebench.cli.listing import as_text, entry
from siegebench.cli.options import DEFAULT_STORE, Json, StorePath
from siegebench.errors import ConfigError, did_you_mean
from siegebench.kinds import KINDS, PLACED
from siegebench.origin import again, by_hand
from siegebench.progress import clock

if TYPE_CHECKING:
    from siegebench.cells import Result

# class attributes that `show` prints, with the values that classes inherit
FLAGS: dict[str, dict[str, Any]] = {
    "attack": {"needs": "gradient", "norms": ("linf",), "minimal": False, "aims": False, "learns": False},
    "measure": {"learns": False},
    "defense": {"trains": False, "randomized": False, "differentiable": True},
    "backdoor": {"clean_label": False},
}


def show(
    name: Annotated[
        str,
        typer.Argument(help="An entry, a suite, or (the beginning of) a row's key.", autocompletion=complete.anything),
    ],
    store: StorePath = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Show entries with their parameters, a suite with its boards, or a stored row and how to make it again.

    An entry and a suite may have the same name; both are shown.
    """
    entries = [described(kind, name) for kind in KINDS if _known(kind, name, alone=True)]
    suites = [suite(path) for path in _suites(name)]
    rows = _rows(name, store) if not (entries or suites) else []
    if as_json:
        print(as_text([*entries, *suites, *({**row.as_dict(), "again": again(row)} for row in rows)]))
        return
    lines = [line for item in entries for line in _entry_lines(item)]
    lines += [line for item in suites for line in _suite_lines(item)]
    lines += [line for row in rows for line in _row_lines(row, store)]
    for line in lines:
        print("".join(c if c.isprintable() else "?" for c in line))


# -------------------------------------------------------------------------------------------------------------- entries


def _known(kind: str, name: str, *, alone: bool = False) -> bool:
    """Whether an entry can stand where one of a kind is expected; `alone`: and is of this kind."""
    try:
        return registry.find(kind, name)[0].card.kind == kind or not alone
    except ConfigError:
        return False


def described(kind: str, name: str) -> dict[str, Any]:
    """All that card and source say about an entry."""
    said = signatures.docstrings(kind, name)
    helped = {parameter: text for docstring in reversed(said) for parameter, text in explained(docstring).items()}
    known = entry(kind, name)
    for parameter, found in known["parameters"].items():
        found["help"] = helped.get(parameter, "")
    declared = known["declares"]
    return {
        **known,
        "docstring": next(iter(said), ""),
        "flags": {flag: declared.get(flag, usual) for flag, usual in FLAGS.get(kind, {}).items()},
        "adaptive": declared.get("adaptive", ()),
        "file": registry.find(kind, name)[0].path.name,
    }


def explained(docstring: str) -> dict[str, str]:
    """The meaning of each parameter, from the section `Attributes:` of a docstring (`a, b: text`)."""
    section = re.search(r"^Attributes:\n(.*?)(?=^\S|\Z)", docstring, re.MULTILINE | re.DOTALL)
    out: dict[str, str] = {}
    names: list[str] = []
    for line in section.group(1).splitlines() if section else ():
        head = re.match(r" {4}(\w+(?:, \w+)*): (.*)", line)
        if head:
            names = head.group(1).split(", ")
            out.update(dict.fromkeys(names, head.group(2)))
        elif line.strip():
            out.update({name: f"{out[name]} {line.strip()}" for name in names})
    return out


def _entry_lines(item: Mapping[str, Any]) -> Iterable[str]:
    kind, name = item["kind"], item["name"]
    yield f"{kind} {name} (version {item['version']}): {item['summary']}"
    if item["paper"]:
        yield f"  {item['paper']}"
    for line in re.sub(r"^Attributes:\n.*?(?=^\S|\Z)", "", item["docstring"], flags=re.M | re.S).splitlines():
        yield f"  {line}".rstrip()
    yield "  parameters:" if item["parameters"] else "  no parameters"
    for key, value in item["parameters"].items():
        given = f" = {value['default']}" if value["default"] is not None else " (required)"
        yield f"    {key}: {value['type']}{given}" + (f"  # {value['help']}" if value["help"] else "")
    for key, preset in item["presets"].items():
        yield f"  preset {name}.{key}: {preset}"
    if item["flags"]:
        yield "  " + ", ".join(f"{k} = {_plain(v)}" for k, v in item["flags"].items())
    if item["sees"]:
        yield f"  uses the splits {', '.join(item['sees'])}"
    adaptive = item["adaptive"]
    for spec in adaptive if isinstance(adaptive, (list, tuple)) else [adaptive]:
        yield f"  adaptive attack: {canonical(spec) if isinstance(spec, dict) else spec}"
    if item["control"]:
        yield "  a planted control: listed, never ranked"
    yield f"  check it: siegebench check {name}"
    if kind in PLACED and not item["control"]:
        yield f"  evaluate it: siegebench run try --set {kind}={name}"


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


# --------------------------------------------------------------------------------------------------------------- suites


def _suites(name: str) -> list[Path]:
    if name.endswith((".yaml", ".yml")) and Path(name).is_file():
        return [Path(name)]
    return [path for path in bundled_suites() if path.stem == name]


def suite(path: Path) -> dict[str, Any]:
    """A suite as it is written."""
    from siegebench.yamlmarks import Document

    written = Document.read(path).data
    written = written if isinstance(written, dict) else {}
    boards = written.get("boards")
    return {
        "kind": "suite",
        "name": str(written.get("suite", path.stem)),
        "summary": str(written.get("summary", "")),
        "file": path.name,
        "written": written,
        "boards": [board for board in (boards if isinstance(boards, list) else []) if isinstance(board, dict)],
    }


def _suite_lines(item: Mapping[str, Any]) -> Iterable[str]:
    yield f"suite {item['name']}: {item['summary']}"
    for key in ("data", "models", "seeds"):
        if key in item["written"]:
            yield f"  {key}: {_listed(item['written'][key])}"
    for i, board in enumerate(item["boards"]):
        yield f"  board {i}: {board.get('track')}"
        for key, value in board.items():
            if key != "track":
                yield f"    {key}: {_listed(value)}"
    target = item["name"] if item["file"] == f"{item['name']}.yaml" else item["file"]
    asked = re.search(rf"'\$({'|'.join(PLACED)})'", str(item["boards"]))
    given = f" --set {asked.group(1)}=NAME" if asked else ""
    yield f"  its cells and their time: siegebench run {target}{given} --dry-run"


def _listed(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_listed, value)) or "none"
    if isinstance(value, dict):
        inner = ", ".join(f"{k}={_listed(v)}" for k, v in value.items() if k not in ("name", "set"))
        name = str(value.get("name", value.get("set", "")))
        return f"{name}({inner})" if name and inner else name or f"({inner})"
    return str(value)


# ----------------------------------------------------------------------------------------------------------------- rows


def _rows(name: str, store: Path) -> list[Result]:
    from siegebench.store import Store

    rows = []
    if len(name) >= 6 and all(c in "0123456789abcdef" for c in name):
        rows = [row for row in Store(store).rows() if row.cell.key.startswith(name)]
    if not rows:
        known = [*(n for _, n in registry.cards()), *(path.stem for path in bundled_suites())]
        raise ConfigError(
            f"{name!r} is neither an entry, nor a suite, nor the key of a row in {store}. {did_you_mean(name, known)}"
        )
    return rows


def _row_lines(row: Result, store: Path) -> Iterable[str]:
    from siegebench.cells import SLOTS
    from siegebench.titles import noun, titles

    yield f"{titles([row.cell])[row.cell.key]}: {row.status}"
    yield f"  key {row.cell.key}"
    for slot in SLOTS:
        description = getattr(row.cell, slot)
        if description is not None:
            yield f"  {slot}: {_listed(description)}"
    if row.cell.inputs is not None:
        yield f"  inputs: {row.cell.labels['inputs']}"
    data = row.cell.data
    yield f"  data: {data['count']} {noun(data)}s of the {data['split']} split of {data['name']}"
    for name, figure in row.metrics.items():
        span = f" [{figure['low']:g}, {figure['high']:g}]" if {"low", "high"} <= figure.keys() else ""
        yield f"  {name} = {figure['value'] if figure['value'] is None else format(figure['value'], 'g')}{span}"
    if row.counts:
        yield "  counts: " + ", ".join(f"{k} {v:g}" for k, v in row.counts.items())
    for flag in row.flags:
        yield f"  {flag['severity']} {flag['id']}: {flag['evidence']}"
    if row.error is not None:
        message = " ".join(str(row.error["message"]).split())
        yield f"  error: {row.error.get('type') or ''} {message}"
        for frame in row.error.get("traceback") or ():
            yield f"    {frame}"
    yield f"  {_took(row)}"
    origin = row.given.get("suite")
    if origin:
        changed = "".join(f" --set {shlex.quote(str(assignment))}" for assignment in origin.get("set", ()))
        yield f"  suite: {origin['name']}{changed}"
    command = again(row)
    yield f"  make it again: {command}" if command else f"  make it again: {by_hand(row)}"
    yield f"  as JSON: siegebench show {row.cell.key[:16]} --store {shlex.quote(str(store))} --json"


def _took(row: Result) -> str:
    """`took 12 s, of which 3 s training, on 2026-01-31; siegebench 0.1.0, torch 2.8, cpu`"""
    seconds, training = row.timing.get("seconds"), row.timing.get("training")
    took = "time unknown" if seconds is None else f"took {clock(seconds)}"
    took += f", of which training {clock(training)}" if training else ""
    took += f", ended {row.timing['ended']}" if row.timing.get("ended") else ""
    told = [f"{k} {row.env[k]}" for k in ("siegebench", "torch", "device") if row.env.get(k)]
    return "; ".join([took, ", ".join(told)] if told else [took])
