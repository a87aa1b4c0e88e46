"""Reads pickles as data: every class and function that a file names becomes a stand-in that does nothing.

`torch.load(weights_only=True)` refuses a file as soon as it names a class that torch does not know, also when that
class lies beside the weights: the options of a training script (`argparse.Namespace`), numpy scalars, a configuration,
or the class of a network that was saved whole. Here such names are only noted. Nothing is imported and nothing is
called, whatever the file says; afterwards the stand-ins of tensors, arrays and modules are turned into tensors.
"""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from siegebench.errors import ModelError

MAGIC = 0x1950A86A20F9469CFC6C  # begins the files of torch before 1.6
DTYPES = {
    "Float": torch.float32, "Double": torch.float64, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool,
}  # fmt: skip
# what no checkpoint needs: a file that names one of these was made to run code
HOSTILE = {
    "os", "posix", "nt", "sys", "subprocess", "shutil", "runpy", "pty", "ctypes", "socket", "importlib", "webbrowser",
    "marshal",
}  # fmt: skip
HOSTILE_BUILTINS = {"eval", "exec", "compile", "open", "input", "breakpoint", "globals", "execfile", "__import__"}

Seen = dict[int, tuple[Any, Any]]  # (object, what it became), by the id of the object


class StandIn(dict[Any, Any]):
    """What every class and function of a file is read as. It keeps what it is given."""

    origin: ClassVar[str] = ""
    args: tuple[Any, ...]
    state: Any
    listed: list[Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> StandIn:
        self = super().__new__(cls)
        self.args, self.state, self.listed = args, None, []
        return self

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def append(self, item: Any) -> None:
        self.listed.append(item)

    def extend(self, items: Any) -> None:
        self.listed.extend(items)

    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__


@dataclass(frozen=True)
class Storage:
    """Where the numbers of a tensor are."""

    kind: str
    key: str
    read: Callable[[str], bytes]


def read(path: Path) -> Any:
    """The contents of a file of `torch.save`, old or new, or of a plain pickle: dicts, lists, tensors, numbers, text.

    An object becomes a dict of its attributes, a network that was saved whole the dict of its `state_dict`.

    Raises:
        ModelError: when the file is damaged, or names functions that only serve to run code.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return _zipped(archive)
        with path.open("rb") as file:
            return _streamed(file)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle can raise anything
        raise ModelError(
            f"{path}: damaged, or not written by torch.save ({first_line(error)}). Download or save it again; best "
            "is a .safetensors file with the state_dict"
        ) from None


def first_line(error: Exception) -> str:
    """The first line of an error for a message: plain text, at most 160 characters."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()
    line = "".join(c for c in text[0] if c.isprintable()) if text else ""
    return (line if len(line) <= 160 else f"{line[:157]}...") or type(error).__name__


def _zipped(archive: zipfile.ZipFile) -> Any:
    pickled = next((n for n in archive.namelist() if n.rpartition("/")[2] == "data.pkl"), None)
    if pickled is None:
        raise ModelError(f"a zip archive without data.pkl: not written by torch.save (found {archive.namelist()[:3]})")
    root = pickled.removesuffix("data.pkl")
    if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
        raise ModelError("written on a big-endian machine; save it as .safetensors there")
    return plain(_Unpickler(io.BytesIO(archive.read(pickled)), lambda key: archive.read(f"{root}data/{key}")).load())


def _streamed(file: IO[bytes]) -> Any:
    """The format of torch before 1.6: pickles one after the other, then the numbers. Or a single plain pickle."""
    numbers: dict[str, bytes] = {}

    def load() -> Any:
        return _Unpickler(file, numbers.__getitem__).load()

    content = load()
    if content != MAGIC:
        return plain(content)
    load()  # version
    if load().get("little_endian") is False:
        raise ModelError("written on a big-endian machine; save it as .safetensors there")
    content = load()
    kinds = _storages(content)
    for key in load():
        count = int.from_bytes(file.read(8), "little")
        numbers[str(key)] = file.read(count * DTYPES[kinds[str(key)]].itemsize)
    return plain(content)


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes], numbers: Callable[[str], bytes]) -> None:
        super().__init__(file, encoding="latin1")
        self.numbers = numbers
        self.classes: dict[str, type[StandIn]] = {}

    def find_class(self, module: str, name: str) -> Any:
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))  # of Python 2
        origin = f"{module}.{name}"
        package = module.partition(".")[0]
        if package in HOSTILE or (package in ("builtins", "io", "_io") and name in HOSTILE_BUILTINS):
            shown = origin if origin.isprintable() else repr(origin)
            raise ModelError(
                f"refused: reading it with pickle would call {shown}. No checkpoint needs that, so somebody put code "
                "into this file. Nothing was run"
            )
        if origin not in self.classes:
            self.classes[origin] = type("StandIn", (StandIn,), {"origin": origin})
        return self.classes[origin]

    def persistent_load(self, pid: Any) -> Any:
        if not isinstance(pid, tuple) or pid[0] not in ("storage", "module"):
            raise pickle.UnpicklingError(f"a reference to {type(pid).__name__}, expected a storage")
        if pid[0] == "module":  # the class of a network, with its source text
            return pid[1]
        if len(pid) > 5 and pid[5] is not None:
            raise pickle.UnpicklingError("a part of another storage, as torch before 0.4 wrote it")
        kind = pid[1].origin.rpartition(".")[2].removesuffix("Storage")
        return Storage(kind, str(pid[2]), self.numbers)


def _storages(content: Any) -> dict[str, str]:
    """The kinds of the storages that a content refers to, by key."""
    found: dict[str, str] = {}
    seen: set[int] = set()
    stack = [content]
    while stack:
        value = stack.pop()
        if isinstance(value, Storage):
            found[value.key] = value.kind
        if not isinstance(value, (dict, list, tuple)) or id(value) in seen:
            continue
        seen.add(id(value))
        stack += value.values() if isinstance(value, dict) else value
        if isinstance(value, StandIn):
            stack += [value.args, value.state, value.listed]
    return found


# -------------------------------------------------------------------------------------------- from stand-ins to tensors


def plain(value: Any, seen: Seen | None = None) -> Any:
    """The content without stand-ins: dicts, lists, tensors, numbers, text; None for what is nothing of these."""
    seen = {} if seen is None else seen
    if not isinstance(value, (dict, list, tuple)):
        return value if isinstance(value, (str, bytes, bool, int, float)) else None
    if id(value) in seen:
        return seen[id(value)][1]
    seen[id(value)] = value, None  # for an object that contains itself
    if isinstance(value, StandIn):
        made = _tensor(value, seen)
        if made is None:
            made = _object(value, seen)
    elif isinstance(value, dict):
        made = {key: plain(item, seen) for key, item in value.items()}
    else:
        made = [plain(item, seen) for item in value]
    seen[id(value)] = value, made  # `value` too: its id must not be given to another object
    return made


def _object(value: StandIn, seen: Seen) -> Any:
    held = dict(value)
    for state in value.state if isinstance(value.state, tuple) else (value.state,):
        held |= state if isinstance(state, dict) else {}
    if not held and value.origin.endswith("OrderedDict") and value.args:  # Python 2 wrote a list of pairs
        held = dict(value.args[0])
    listed = value.args[0] if value.origin in ("builtins.set", "builtins.frozenset") else value.listed
    if not held and listed:
        return [plain(item, seen) for item in listed]
    made = {key: plain(item, seen) for key, item in held.items()}
    return _module(made) if {"_parameters", "_buffers", "_modules"} <= made.keys() else made


def _module(attributes: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state_dict of a module from its attributes; its children have been converted already."""
    hidden = attributes.get("_non_persistent_buffers_set") or ()
    state = {k: v for k, v in (attributes["_parameters"] or {}).items() if isinstance(v, Tensor)}
    state |= {k: v for k, v in (attributes["_buffers"] or {}).items() if isinstance(v, Tensor) and k not in hidden}
    for name, child in (attributes["_modules"] or {}).items():
        if isinstance(child, dict):
            state |= {f"{name}.{k}": v for k, v in child.items() if isinstance(v, Tensor)}
    return state


def _tensor(value: StandIn, seen: Seen) -> Any:
    """A tensor, or a number of numpy's; None when the object is none."""
    module, _, name = value.origin.rpartition(".")
    if name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
        storage, offset, size, stride = value.args[:4]
        return torch.as_strided(_numbers(storage), size, stride, offset)
    if name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
        return plain(value.args[0], seen)
    if name == "_rebuild_from_type_v2":
        return plain(value.args[0](*value.args[2]), seen)
    if module.endswith("core.multiarray") and name == "_reconstruct" and isinstance(value.state, tuple):
        _, shape, dtype, fortran, data = value.state
        array = _array(data, dtype)
        return None if array is None else torch.from_numpy(array.reshape(shape, order="F" if fortran else "C").copy())
    if module.endswith("core.multiarray") and name == "scalar" and len(value.args) == 2:
        array = _array(value.args[1], value.args[0])
        return None if array is None else array[0].item()
    return None


def _numbers(storage: Any) -> Tensor:
    if isinstance(storage, StandIn) and storage.origin.endswith("._load_from_bytes"):  # a plain pickle of tensors
        inner = io.BytesIO(_bytes(storage.args[0]))
        numbers: dict[str, bytes] = {}
        for _ in range(3):
            _Unpickler(inner, numbers.__getitem__).load()
        storage = _Unpickler(inner, numbers.__getitem__).load()
        _Unpickler(inner, numbers.__getitem__).load()
        inner.read(8)
        numbers[storage.key] = inner.read()
    data, dtype = storage.read(storage.key), DTYPES[storage.kind]
    return torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)


def _array(data: Any, dtype: Any) -> np.ndarray[Any, Any] | None:
    """Numbers of numpy's; None for text and objects."""
    data = _bytes(data)
    code = dtype.args[0] if isinstance(dtype, StandIn) and dtype.args else None
    if not isinstance(data, bytes) or not isinstance(code, str) or not re.fullmatch(r"[fiub][1248]", code):
        return None
    order = dtype.state[1] if isinstance(dtype.state, tuple) else "<"
    return np.frombuffer(data, dtype=("<" if order == "|" else order) + code)


def _bytes(data: Any) -> Any:
    """Bytes as protocol 2 writes them, as a call that encodes text."""
    return data.args[0].encode("latin1") if isinstance(data, StandIn) and data.origin == "_codecs.encode" else data
