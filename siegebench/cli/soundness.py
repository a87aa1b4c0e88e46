"""`siegebench soundness`: does a verifier prove what is false?"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from siegebench.cli.options import DEFAULT_STORE, Json, StorePath, as_value
from siegebench.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from siegebench.soundness import Contender, Row


def soundness(
    command: Annotated[
        str | None,
        typer.Option(help="An external verifier, with the places {onnx}, {vnnlib}, {timeout}, and {results} if used."),
    ] = None,
    certifier: Annotated[
        list[str] | None, typer.Option(help="A certifier: a name or '{name: ..., ...}'; can be repeated.")
    ] = None,
    attack: Annotated[
        list[str] | None, typer.Option(help="An attack: a name or '{name: ..., ...}'; can be repeated.")
    ] = None,
    networks: Annotated[
        str, typer.Option("--set", help="Networks: small (minutes) or paper (hours, a GPU).")
    ] = "small",
    network: Annotated[list[str] | None, typer.Option(help="Only this network of the set; can be repeated.")] = None,
    timeout: Annotated[int, typer.Option(min=1, help="Seconds of a command for each point.")] = 60,
    out: Annotated[Path | None, typer.Option(help="Folder that keeps the ONNX and VNN-LIB files.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the networks and their points.")] = 0,
    store: StorePath = DEFAULT_STORE,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ... for training.")] = "auto",
    as_json: Json = False,
) -> None:
    """Test a verifier, certifiers or attacks on networks with hidden counterexamples.

    The networks are trained once and kept in the store. Who verifies an unverifiable point is unsound, and the exit
    code is 1. An attack should falsify them.
    """
    if command is None and not certifier and not attack and out is None:
        raise ConfigError("nothing to test; give --command, --certifier or --attack, or --out for the files alone")
    from siegebench import environment
    from siegebench.soundness import SETS, by_attack, by_certifier, by_command, planted, trial
    from siegebench.soundness.exports import write
    from siegebench.store import Store

    if networks not in SETS:
        raise ConfigError(f"--set {networks}: no such set. {did_you_mean(networks, SETS)}")
    chosen = network or list(SETS[networks])
    for name in chosen:
        if name not in SETS[networks]:
            raise ConfigError(f"--network {name}: not in the set {networks}. {did_you_mean(name, SETS[networks])}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = out or Path(scratch)
        contenders: dict[str, Contender] = {}
        if command is not None:
            contenders[command.split()[0] if command.split() else command] = by_command(command, folder, timeout)
        contenders |= {text: by_certifier(as_value("--certifier", text), seed) for text in certifier or ()}
        contenders |= {text: by_attack(as_value("--attack", text), seed) for text in attack or ()}
        used, sets = environment.device(device), []
        for name in chosen:
            print(f"{name}: training, if it is not stored", file=sys.stderr)
            sets.append(planted(name, SETS[networks][name], Store(store), seed, used))
        if out is not None:
            files = [pair for one in sets for pair in write(one, out)]
            listed = "".join(f"{o.name},{v.name},{timeout}\n" for o, v in files)
            (out / "instances.csv").write_text(listed, encoding="utf-8")
        rows = []
        for title, contender in contenders.items():
            print(title, file=sys.stderr)
            rows.append(trial(title, contender, sets))
    if as_json:
        print(json.dumps([{**asdict(row), "unsound": row.unsound} for row in rows], indent=1))
    else:
        for line in lines(rows):
            print(line)
    for row in rows:
        if row.errors:
            print(f"{row.name}: no verdict for {row.errors} points", file=sys.stderr)
        if row.unsound:
            print(f"{row.name} is unsound: it verified balls with a known counterexample", file=sys.stderr)
    if any(row.unsound or row.errors for row in rows):
        raise typer.Exit(1)


def lines(rows: list[Row]) -> list[str]:
    """The verdicts as text."""
    table: list[tuple[str, ...]] = [
        ("", "clean verified", "clean falsified", "unverifiable verified", "unverifiable falsified", "errors")
    ]
    for row in rows:
        clean, planted = row.clean, row.unverifiable
        table.append((
            row.name,
            _share(row.clean_verified, clean), _share(row.clean_falsified, clean),
            _share(row.unverifiable_verified, planted), _share(row.unverifiable_falsified, planted),
            str(row.errors),
        ))  # fmt: skip
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    return ["  ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)).rstrip() for row in table]


def _share(n: int, of: int) -> str:
    return f"{100 * n / of:.0f} % ({n} of {of})" if of else "-"
