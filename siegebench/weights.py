"""Weight files: safetensors, or a `.pth` that contains only tensors. Code in a file is never run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from siegebench.errors import ModelError
from siegebench.files import write_atomic

_WRAPPERS = ("state_dict", "model_state_dict", "model")  # keys under which training scripts store the weights


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` or `.pth` file, on the CPU, without the `module.` prefix of DataParallel.

    Raises:
        ModelError: when the file is missing, corrupt, not finite, or contains anything but tensors (a pickle that would
            run code is refused before it runs).
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"{path}: no such file; expected weights as .safetensors or .pth")
    if path.suffix == ".safetensors":
        try:
            loaded: Any = safetensors.torch.load_file(path)
        except Exception as error:
            # the reader raises many types; the cause is in the file, and the user needs its name
            raise ModelError(f"{path}: not a readable safetensors file ({_first_line(error)})") from None
    else:
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged pickle can raise anything
            raise ModelError(
                f"{path}: refused. It is damaged, or it contains more than tensors and would run code when read "
                f"({_first_line(error)}). Save only model.state_dict(), best as .safetensors"
            ) from None
    state = _tensors(loaded, path)
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    check_finite(state, path)
    return state


def save_weights(path: str | Path, state: Mapping[str, Tensor]) -> None:
    """Write a safetensors file that is either complete or absent, even if the process is killed."""
    # clone: safetensors refuses tensors that share memory
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    write_atomic(Path(path), safetensors.torch.save(plain))


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and values: the same for every file format and device."""
    h = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        h.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        h.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return h.hexdigest()


def check_finite(state: Mapping[str, Tensor], where: object) -> None:
    """Refuse NaN and infinity.

    Raises:
        ModelError: naming the tensor.
    """
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"{where}: {name} contains NaN or infinite values")


def check_fit(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: object) -> None:
    """Refuse weights of another architecture or number of classes.

    Raises:
        ModelError: naming what was found and what the network expects.
    """
    # num_batches_tracked counts training steps: old files lack it, and no result depends on it
    missing = sorted(name for name in expected.keys() - state.keys() if not name.endswith("num_batches_tracked"))
    unknown = sorted(state.keys() - expected.keys())
    if missing or unknown:
        raise ModelError(
            f"{where}: weights of another architecture: {len(missing)} tensors missing{_such_as(missing)}, "
            f"{len(unknown)} not of this network{_such_as(unknown)}"
        )
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise ModelError(
                f"{where}: {name} is {tuple(tensor.shape)}, this network expects {tuple(expected[name].shape)}"
            )


def _tensors(loaded: Any, path: Path) -> dict[str, Tensor]:
    for key in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
            break
    if not isinstance(loaded, Mapping) or not loaded:
        raise ModelError(f"{path}: expected names and tensors, found {type(loaded).__name__}")
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ModelError(f"{path}: {name!r} is {type(value).__name__}, expected a tensor")
    return dict(loaded)


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0][:160] if text else type(error).__name__


def _such_as(names: list[str]) -> str:
    return f" (such as {names[0]})" if names else ""
