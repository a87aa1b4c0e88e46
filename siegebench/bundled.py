"""The suites that come along, found without loading anything heavy."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from siegebench.errors import ConfigError, did_you_mean


def suite_path(name: str) -> Path:
    """A file, or the name of a suite that comes along.

    Raises:
        ConfigError: when there is neither; with the nearest name.
    """
    path = Path(name)
    if path.is_file():
        return path
    bundled = {p.stem: p for p in bundled_suites()}
    if name in bundled:
        return bundled[name]  # also where a folder has its name
    if path.is_dir():
        raise ConfigError(f"{name}: is a folder; expected a YAML file or the name of a bundled suite")
    raise ConfigError(f"{name}: no such file or bundled suite. {did_you_mean(path.stem, bundled)}")


def bundled_suites() -> list[Path]:
    """The suites that come with the package."""
    spec = importlib.util.find_spec("siegebench.suites")
    folders = spec.submodule_search_locations if spec and spec.submodule_search_locations else []
    return sorted(p for folder in folders for p in Path(folder).glob("*.yaml"))
