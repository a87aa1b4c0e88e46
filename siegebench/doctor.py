"""The report of `siegebench doctor`: enough to answer most bug reports."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from siegebench import __version__, registry
from siegebench.errors import ConfigError, DataError, quoted, shortened

EXTRAS = {
    "torchattacks": "torchattacks", "art": "adversarial-robustness-toolbox", "wandb": "wandb", "ray": "ray",
    "render": "mitsuba", "onnx": "onnxruntime", "huggingface": "transformers",
}  # fmt: skip


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


def examine_data(text: str) -> dict[str, Any]:
    """The splits, labels and class names of a data set. Reads all labels and one image of each split.

    Args:
        text: the data set as a suite names it, in YAML: `digits` or `{name: image_folder, folder: FOLDER}`.

    Raises:
        ConfigError, DataError: unknown name or parameter; no split can be read.
    """
    import yaml

    from siegebench.types import DataSource

    try:
        spec = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--data {shortened(text)}: not YAML ({str(error).splitlines()[0]})") from None
    source = registry.build(DataSource, spec)
    found: dict[str, Any] = {}
    facts: dict[str, dict[str, Any]] = {}
    for split in source.known_splits():
        try:
            found[split] = source.scan(split)
            channels, height, width = found[split].shape
            facts[split] = {"images": len(found[split]), "channels": channels, "height": height, "width": width}
        except DataError as error:
            found.pop(split, None)
            facts[split] = {"error": str(error)}
    if not found:
        raise DataError(next((f["error"] for f in facts.values()), f"{shortened(text)}: no split has images"))
    counts = {split: data.labels.bincount(minlength=data.num_classes).tolist() for split, data in found.items()}
    names = next((data.classes for data in found.values() if data.classes), None)
    most = max(data.num_classes for data in found.values())
    return {
        "data set": registry.normal(spec),
        "splits": facts,
        "classes": [
            {
                "label": label,
                "name": names[label] if names else None,
                **{split: count[label] if label < len(count) else 0 for split, count in counts.items()},
            }
            for label in range(most)
        ],
    }


def data_lines(found: dict[str, Any]) -> Iterator[str]:
    """The result of `examine_data` as text: a line for each split and for each class."""
    yield f"data set {found['data set']['name']}"
    for split, facts in found["splits"].items():
        if "error" in facts:
            yield f"  {split}: {facts['error']}"
        else:
            channels = "1 channel" if facts["channels"] == 1 else f"{facts['channels']} channels"
            yield f"  {split}: {facts['images']} images of {facts['width']}x{facts['height']} pixels, {channels}"
    yield "labels"
    for row in found["classes"]:
        counts = ", ".join(f"{split} {n}" for split, n in row.items() if split not in ("label", "name"))
        yield f"  {row['label']}: {quoted(row['name'] or 'no name')} ({counts})"
