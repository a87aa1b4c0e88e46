"""The report of `siegebench doctor`: enough to answer most bug reports."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from pathlib import Path
from typing import Any

from siegebench import __version__, registry

EXTRAS = {"torchattacks": "torchattacks", "art": "adversarial-robustness-toolbox", "wandb": "wandb", "ray": "ray"}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def examine(store: Path) -> dict[str, dict[str, Any]]:
    """Sections of plain facts; imports torch to list the devices, nothing else heavy."""
    import torch

    here = store if store.exists() else Path.cwd()
    free = shutil.disk_usage(here).free / 2**30
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    data = os.environ.get("SIEGEBENCH_DATA")
    packages = ("torch", "torchvision", "timm", "numpy", "scipy", "scikit-learn", "pydantic", "typer", "pyarrow")
    return {
        "siegebench": {"version": __version__, "entries": len(registry.cards())},
        "machine": {
            "python": platform.python_version(),
            "system": platform.system(),
            "cores": os.cpu_count(),
            "cuda": ", ".join(devices) or "none: runs on the CPU",
        },
        "packages": {name: _version(name) for name in packages},
        "extras": {
            extra: found
            if (found := _version(package)) != "not installed"
            else f"not installed: pip install 'siegebench[{extra}]'"
            for extra, package in EXTRAS.items()
        },
        "data": {
            "SIEGEBENCH_DATA": (data if Path(data).is_dir() else f"{data} (no such folder)") if data else "not set",
            "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "not set"),
        },
        "wandb": {"mode": os.environ.get("WANDB_MODE", "offline unless --wandb online")},
        "store": {
            "folder": str(store),
            "rows": sum(1 for _ in (store / "rows").rglob("*.json")) if store.exists() else 0,
            "artifacts": sum(1 for _ in (store / "artifacts").glob("*.safetensors")) if store.exists() else 0,
            "free disk": f"{free:.1f} GiB",
        },
    }
