"""`siegebench recheck`: are the stored rows what this code computes?"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from siegebench.cli.options import DEFAULT_STORE, Json, StorePath


def recheck(
    store: StorePath = DEFAULT_STORE,
    seconds: Annotated[
        float, typer.Option(min=10, help="How long it may take; a row that takes longer is stopped.")
    ] = 180,
    salt: Annotated[str, typer.Option(help="Another salt draws other rows.")] = "",
    file: Annotated[
        list[Path] | None, typer.Option(help="A suite that made some of the rows and is not bundled; repeatable.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    as_json: Json = False,
) -> None:
    """Compute a random sample of stored rows again from scratch, and compare.

    A row agrees if all its outcomes are the same, or if all its rates lie within the intervals of the stored row.
    Only rows are drawn that are expected to end in time, with the networks that must be trained for them.
    Exit code 1: a row does not agree. 2: a row is of no cell of its suite. 3: no row could be started in time.
    """
    from siegebench.cells import Cell
    from siegebench.errors import ConfigError
    from siegebench.submissions.again import recheck as checked
    from siegebench.submissions.collect import from_store

    def say(text: str) -> None:
        print(text, file=sys.stderr)

    def report(cell: Cell, status: str) -> None:
        if status != "started":
            say(f"{status}: {cell.title}")

    rows = from_store(Path(store))
    found = checked(
        rows, seconds=seconds, salt=salt, files=file or (), threads=threads, device=device, say=say, report=report
    )
    titles = {row.cell.key: row.cell.title for row in rows}
    if as_json:
        print(json.dumps(asdict(found), indent=1))
    else:
        for reason in sorted(set(found.missing.values())):
            print(f"not here: {reason}")
        for key, why in found.why.items():
            print(f"{key[:16]} {titles[key]}: {why}")
        if found.unknown:
            print(f"{found.unknown} rows are never drawn: no row says how long their networks take to train")
        for key, told in found.stopped.items():
            print(f"{key[:16]} {titles[key]}: {told}")
        equal = sum(agreed == "equal" for agreed in found.agreed.values())
        print(
            f"{len(found.agreed)} of {len(rows)} rows computed again in {found.seconds:.0f} s: {equal} equal, "
            f"{len(found.agreed) - equal - len(found.why)} within their intervals, {len(found.why)} different"
        )
    if not found.agreed and not found.stopped:
        told = f"{store}: no row could be computed again within {seconds:g} s; give more --seconds"
        if found.missing:
            raise ConfigError(told)
        say(told)
        raise typer.Exit(3)
    if found.why:
        raise typer.Exit(1)
