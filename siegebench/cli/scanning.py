"""`siegebench scan`: is this network backdoored?"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from siegebench.cli.options import DEFAULT_STORE, Json, StorePath, as_value

if TYPE_CHECKING:
    from siegebench.scanning import Finding, Scan


def scan(
    checkpoint: Annotated[str, typer.Argument(help="A file with the weights of the network.")],
    model: Annotated[
        str, typer.Option(help="Its architecture: an entry of the zoo such as timm/resnet18, or '{name: ..., ...}'.")
    ],
    data: Annotated[
        str, typer.Option(help="What it classifies: a data set such as gtsrb, or '{name: image_folder, ...}'.")
    ],
    detector: Annotated[
        list[str] | None, typer.Option(help="Only this detector, can be repeated; default: every model detector.")
    ] = None,
    clean: Annotated[
        int, typer.Option(min=0, help="Clean networks of this architecture to train, to measure false alarms.")
    ] = 3,
    count: Annotated[int | None, typer.Option(min=1, help="Test images for the clean accuracy; default: all.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of the detectors and of the clean networks.")] = 0,
    store: StorePath = DEFAULT_STORE,
    slots: Annotated[int | None, typer.Option(min=1, help="Processes; default: one per core.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch per process.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    as_json: Json = False,
) -> None:
    """Run every detector of backdoored models on one network, and print the triggers that they find.

    The verdicts are those at the detectors' published thresholds. Compare them with those on the clean networks, which
    are trained here once and kept: a detector that also accuses these has no ground to accuse yours.
    """
    from siegebench.plan import plan
    from siegebench.progress import Progress
    from siegebench.scanning import model_detectors, suite_of
    from siegebench.scanning import scan as run_scan
    from siegebench.store import Store
    from siegebench.titles import titles
    from siegebench.workspace import Settings, Workspace

    settings = Settings(root=str(store), device=device, threads=threads)
    Workspace(settings)  # raises for an unknown device before anything else
    wanted = [as_value("--detector", text) for text in detector] if detector else model_detectors()
    with Progress() as progress:
        progress.say("checking the network and the data")
        suite = suite_of(
            checkpoint, as_value("--model", model), as_value("--data", data),
            count=count, detectors=wanted, clean=clean, seed=seed,
        )  # fmt: skip
        planned, at_once = plan(suite), slots or os.cpu_count() or 1
        progress.begin(planned.cells, at_once, titles(planned.cells), Store(store))
        how = "serial" if at_once == 1 else "local"
        found = run_scan(suite, settings, progress.step, how=how, slots=slots, planned=planned)
    if as_json:
        print(json.dumps(asdict(found), indent=1))
    else:
        for line in lines(found, checkpoint):
            print(line)
    failed = [f for f in found.findings if f.status in ("error", "crashed")]
    for finding in failed:
        print(f"failed: {finding.detector}: {finding.message}", file=sys.stderr)
    if failed:
        raise typer.Exit(1)


def lines(found: Scan, checkpoint: str) -> list[str]:
    """The findings as text."""
    accuracy = "unknown" if found.accuracy is None else f"{100 * found.accuracy:.1f} %"
    out = [f"{Path(checkpoint).name}: clean accuracy {accuracy} (if that is far too low, --data does not fit it)", ""]
    table: list[tuple[str, ...]] = [
        ("detector", "verdict", "class", "score", "false alarms", "clean score as high", "trigger")
    ]
    table += [_row(finding) for finding in found.findings]
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    return out + ["  ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)).rstrip() for row in table]


def _row(finding: Finding) -> tuple[str, ...]:
    if finding.status != "ok":
        return (finding.detector, finding.status.replace("_", " "), "", "", "", "", finding.message)
    more = f" +{finding.targets - 1}" if finding.targets > 1 else ""
    of = f" of {finding.clean}" if finding.clean else "not measured"
    return (
        finding.detector,
        "backdoored" if finding.backdoored else "clean",
        "-" if finding.target is None else f"{finding.target}{more}",
        "-" if finding.score is None else f"{finding.score:.3g}",
        f"{finding.false_alarms}{of}" if finding.clean else of,
        f"{finding.above}{of}" if finding.clean else of,
        finding.trigger or "-",
    )
