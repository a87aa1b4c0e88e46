"""Environment of a result: versions, hardware, commit of a checkout. No host names or paths."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from siegebench import __version__
from siegebench.errors import ConfigError

PACKAGES = ("torch", "torchvision", "timm", "numpy", "scipy", "scikit-learn")


def device(name: str) -> torch.device:
    """The device of a name; `auto` uses CUDA if available.

    Raises:
        ConfigError: when the device does not exist.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(name)
    except RuntimeError:
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {name!r}: expected auto, cpu, cuda or cuda:NUMBER")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {name!r}: {torch.cuda.device_count()} CUDA devices are visible; use --device cpu")
    return found


def environment(used: torch.device) -> dict[str, Any]:
    """Versions, and the hardware that the row was computed on."""
    return {
        **_versions(),
        "device": torch.cuda.get_device_name(used) if used.type == "cuda" else (platform.machine() or "cpu"),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


@lru_cache(maxsize=1)
def _versions() -> dict[str, Any]:
    return {
        "siegebench": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """`<commit>` or `<commit>+dirty` of a checkout; None elsewhere."""
    checkout = Path(__file__).resolve().parent.parent
    if not (checkout / ".git").exists():
        return None
    try:
        head, status = (
            subprocess.run(["git", *words], cwd=checkout, capture_output=True, text=True, timeout=10)
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain"))
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return None if head.returncode else head.stdout.strip() + ("+dirty" if status.stdout.strip() else "")
