"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, nothing else.")]
StorePath = Annotated[Path, typer.Option("--store", help="Folder of rows and trained artifacts.")]
DEFAULT_STORE = Path("results")
