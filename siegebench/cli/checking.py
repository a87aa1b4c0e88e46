"""`siegebench new` and `siegebench check`: for authors of entries."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from siegebench.cli import complete
from siegebench.cli.options import Json

if TYPE_CHECKING:
    from siegebench.testing import Check


def _kinds(incomplete: str) -> list[str]:
    from siegebench.skeleton import CODE

    return [kind for kind in CODE if kind.startswith(incomplete)]


def new(
    kind: Annotated[
        str, typer.Argument(help="attack, defense, backdoor, detector, camouflage or certifier.", autocompletion=_kinds)
    ],
    name: Annotated[str, typer.Argument(help="snake_case name; becomes NAME.py and NAME.yaml.")],
    folder: Annotated[Path | None, typer.Option(help="Where to write; default: the folder of that kind.")] = None,
    as_json: Json = False,
) -> None:
    """Write a skeleton of a new entry: one Python file and one card."""
    from siegebench.skeleton import write

    paths = write(kind, name, folder)
    if as_json:
        print(json.dumps([str(path) for path in paths], indent=1))
        return
    for path in paths:
        print(path)
    if folder is None:
        told = "next: replace what says TODO, then `siegebench check {0}` and `siegebench run try --set {1}={0}`"
        print(told.format(name, kind), file=sys.stderr)


def check(
    name: Annotated[str, typer.Argument(help="A registered entry.", autocompletion=complete.entries)],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="PARAMETER=VALUE", help="A parameter, as in a suite.")
    ] = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also test whether the attacks on this defense find planted images.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run the contract tests on an entry; takes about a minute on a CPU."""
    from siegebench.testing import check_attacks, check_entry

    spec = _spec(name, set_ or [])
    planted = check_attacks(spec) if deep else []  # first: it refuses what is no defense before any computing
    found = [*check_entry(spec), *planted]
    if as_json:
        print(json.dumps([{**vars(c), "skipped": c.skipped} for c in found], indent=1))
    else:
        for item in found:
            print(_line(item))
    failed, skipped = (sum(getattr(c, k) is v for c in found) for k, v in (("passed", False), ("skipped", True)))
    told = f"{len(found) - failed - skipped} ok, {failed} failed, {skipped} not checked"
    print(f"{name}: {told}", file=sys.stderr)
    if failed or skipped == len(found):  # an entry that could not be tested at all has not passed
        raise typer.Exit(1)


def _spec(name: str, assignments: list[str]) -> dict[str, Any]:
    """The entry with its parameters."""
    from siegebench.yamlmarks import Document

    document = Document("{}", name)
    document.data = {"name": name}
    for assignment in assignments:
        document.override(assignment)
    return dict(document.data)


def _line(item: Check) -> str:
    if item.skipped:
        return f"----  {item.name}"
    return f"{'ok  ' if item.passed else 'FAIL'}  {item.name}{'' if item.passed else ': ' + item.detail}"
