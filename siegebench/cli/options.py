"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from siegebench.errors import ConfigError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, nothing else.")]
StorePath = Annotated[Path, typer.Option("--store", help="Folder of rows and trained artifacts.")]
DEFAULT_STORE = Path("results")


def as_value(option: str, text: str) -> Any:
    """A name or a mapping in YAML."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = None
    if not isinstance(value, (str, dict)):
        raise ConfigError(f"{option} {text}: expected a name or a mapping in YAML such as '{{name: ..., ...}}'")
    return value
