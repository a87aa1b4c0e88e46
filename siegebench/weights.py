"""Weight files: safetensors, `.pth` in its old and new formats, `.npz`. Code in a file is never run."""

from __future__ import annotations

import contextlib
import hashlib
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from siegebench import pickles
from siegebench.errors import ModelError
from siegebench.files import write_atomic

_WRAPPERS = ("state_dict", "model_state_dict", "model")  # keys under which training scripts store the weights


def read_weights(path: str | Path) -> Any:
    """What a weight file contains, on the CPU: a dict, often of dicts, with tensors and what lies beside them.

    Reads `.safetensors`, files of `torch.save` and TorchScript, and `.npz`, whatever the name ends with. Code in a
    file is never run: objects of other classes, such as `argparse.Namespace`, become dicts of their attributes.

    Raises:
        ModelError: when the file is missing, damaged, of another format, or was made to run code.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"{path}: no such file; expected weights as .safetensors or .pth")
    with path.open("rb") as file:
        head = file.read(512)
    if (head[8:9] == b"{" or path.suffix == ".safetensors") and head[:1] != b"\x80" and head[:2] != b"PK":
        try:
            return safetensors.torch.load_file(path)
        except Exception as error:
            # the reader raises many types; the cause is in the file, and the user needs its name
            raise ModelError(f"{path}: not a readable safetensors file ({pickles.first_line(error)})") from None
    if head[:2] == b"PK" and (arrays := _arrays(path)) is not None:
        return arrays
    if head[:1] != b"\x80" and head[:2] != b"PK":
        raise ModelError(f"{path}: {_format(head, path)}; expected weights as .safetensors or .pth")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the pickle protocol, of TorchScript
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # it contains classes that torch does not know, or is damaged
        return pickles.read(path)


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file that contains one state_dict, on the CPU, without the `module.` prefix of DataParallel.

    For a file that contains more than that, or other names than the network, see `siegebench.checkpoints`.

    Raises:
        ModelError: as `read_weights`, and when the file contains no names and tensors, or NaN.
    """
    path = Path(path)
    state = _tensors(read_weights(path), path)
    if all(name.startswith("module.") for name in state):
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


def _arrays(path: Path) -> dict[str, Tensor] | None:
    """The arrays of a `.npz` file; None for another zip archive."""
    with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        if not archive.namelist() or not all(name.endswith(".npy") for name in archive.namelist()):
            return None
        try:
            with np.load(path, allow_pickle=False) as held:
                arrays = {name: held[name] for name in held.files}
        except Exception as error:  # as above
            raise ModelError(f"{path}: not a readable .npz file ({pickles.first_line(error)})") from None
        return {name: torch.from_numpy(a.copy()) for name, a in arrays.items() if a.dtype.kind in "fiub"}
    return None


_FORMATS = (  # (offset, first bytes, what it is)
    (0, b"\x89HDF", "an HDF5 file, such as Keras writes"),
    (0, b"\x93NUMPY", "a single array of numpy, without names"),
    (0, b"version https://git-lfs", "only a pointer of Git LFS; fetch the file itself with `git lfs pull`"),
    (0, b"7767517", "the description of a network for ncnn, without its weights"),
    (0, b"GGUF", "a GGUF file of llama.cpp"),
    (0, b"<", "a web page or XML; the download went wrong"),
    (0, b"{", "JSON text"),
    (0, b"\x1f\x8b", "compressed with gzip; unpack it first"),
    (0, b"BZh", "compressed with bzip2; unpack it first"),
    (0, b"PAR1", "a parquet file"),
    (0, b"\x89PNG", "an image"),
    (0, b"\xff\xd8\xff", "an image"),
    (4, b"TFL3", "a TensorFlow Lite network"),
    (257, b"ustar", "a tar archive; unpack it first"),
)


def _format(head: bytes, path: Path) -> str:
    """What a file is that contains no weights of torch."""
    for at, start, said in _FORMATS:
        if head[at : at + len(start)] == start:
            return said
    if not head:
        return "an empty file"
    if path.suffix == ".onnx" or (head[:1] == b"\x08" and (b"pytorch" in head or b"onnx" in head)):
        return "an ONNX network"
    if path.suffix == ".bin":
        return "numbers without names, such as the .bin of ncnn, or a damaged file"
    return f"not a weight file; it begins with {head[:8]!r}"


def _such_as(names: list[str]) -> str:
    return f" (such as {names[0]})" if names else ""
