"""`siegebench import`: figures that others published, to be shown beside measured ones."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from siegebench.cli.options import DEFAULT_STORE, Json, StorePath


def _formats(incomplete: str) -> list[str]:
    from siegebench.importers import READERS

    return [name for name in READERS if name.startswith(incomplete)]


def import_(
    format_: Annotated[
        str,
        typer.Argument(
            metavar="FORMAT", help="robustbench, backdoorbench, attackbench or lm_eval.", autocompletion=_formats
        ),
    ],
    file: Annotated[list[Path], typer.Argument(help="Result files in that format.")],
    data: Annotated[str, typer.Option(help="Name of the data set here, if the file says another one or none.")] = "",
    norm: Annotated[str, typer.Option(help="linf, l2, l1 or l0, if the file does not say it.")] = "",
    eps: Annotated[str, typer.Option(help="Budget such as 8/255, if the file does not say it.")] = "",
    model: Annotated[str, typer.Option(help="Name of the model here; the figure is then shown beside its line.")] = "",
    defense: Annotated[str, typer.Option(help="Name of the defense here; likewise.")] = "",
    backdoor: Annotated[str, typer.Option(help="Name of the backdoor attack here.")] = "",
    source: Annotated[str, typer.Option(help="Who published it; default: the name of the benchmark.")] = "",
    store: StorePath = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Read published figures into STORE/published. Boards show them with their source; they change no rank."""
    from siegebench.importers import Known, figures
    from siegebench.published import write

    known = Known(data=data, norm=norm, eps=eps, model=model, defense=defense, backdoor=backdoor, source=source)
    found = [figures(format_, path, known) for path in file]  # all are read before anything is written
    written = [write(store, each) for each in found]
    if as_json:
        print(json.dumps([f.model_dump(exclude_none=True) for each in found for f in each], indent=1))
        return
    for path in written:
        print(path)
    print(f"{sum(map(len, found))} published figures; shown by siegebench report --store {store}", file=sys.stderr)
