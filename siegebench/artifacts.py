"""Artifacts: trained weights, stored once per description and shared by all cells and processes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from siegebench import sources
from siegebench.cells import digest
from siegebench.classifier import M
from siegebench.errors import ModelError
from siegebench.files import write_atomic
from siegebench.store import Store
from siegebench.weights import load_weights, save_weights, weights_hash

VERSION = 1  # raised when the same description would give other weights


def trained(
    store: Store,
    description: dict[str, Any],
    model: M,
    fit: Callable[[], M],
    made_by: Mapping[str, str] | None = None,
) -> M:
    """`model` with the weights of a description.

    Args:
        model: a model of the same structure; its weights are replaced.
        fit: returns the trained model; called only if its weights are not stored, or were made by other source.
        made_by: hashes of the source of the entries that train, stored beside the weights.
    """
    model.load_state_dict(made(store, description, lambda: fit().to("cpu", torch.float32).state_dict(), made_by))
    return model


def made(
    store: Store,
    description: dict[str, Any],
    make: Callable[[], Mapping[str, Tensor]],
    made_by: Mapping[str, str] | None = None,
) -> dict[str, Tensor]:
    """The tensors of a description, by name, on the CPU; made and stored first if they are not.

    Args:
        make, made_by: as `fit` and `made_by` of `trained`.
    """
    description = {"artifact": VERSION, **description}
    key = digest(description)
    path = store.artifact(key)
    with store.lock(f"a{key}"):
        _drop_stale(path, made_by or {})
        state = _stored(path)
        if state is None:
            store.sweep(path)
            tensors = make()
            beside = {**description, **({"sources": dict(made_by)} if made_by else {})}
            text = json.dumps(beside, indent=1, ensure_ascii=False) + "\n"
            write_atomic(path.with_suffix(".json"), text.encode())
            save_weights(path, tensors)  # written last: if the weights exist, the artifact is complete
            state = load_weights(path)
    return state


def fingerprint(model: nn.Module) -> str:
    """Hash of a model's weights, the same in float32 and float64."""
    return weights_hash(dict(_plain(model.state_dict())))


def _plain(state: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a state; also of quantised layers, which keep several values under one name."""
    for name, value in state.items():
        if isinstance(value, Tensor):
            value = value.dequantize() if value.is_quantized else value
            yield name, value.float() if value.is_floating_point() else value
        elif isinstance(value, (tuple, list)):
            yield from _plain({f"{name}.{i}": v for i, v in enumerate(value)})
        else:
            yield name, torch.tensor(list(repr(value).encode()), dtype=torch.uint8)


def _drop_stale(path: Path, made_by: Mapping[str, str]) -> None:
    """Remove weights that other source has made; those of earlier versions do not say what made them, and stay."""
    try:
        stored = json.loads(path.with_suffix(".json").read_bytes()).get("sources", {})
    except (OSError, ValueError, AttributeError):
        return
    if sources.differ(stored, made_by):
        path.unlink(missing_ok=True)


def _stored(path: Path) -> dict[str, Tensor] | None:
    """The weights of an artifact, or None. A damaged file is renamed to `.corrupt`."""
    if not path.exists():
        return None
    try:
        return load_weights(path)
    except ModelError:
        os.replace(path, path.with_suffix(".corrupt"))
        return None
