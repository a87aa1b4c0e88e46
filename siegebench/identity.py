"""Identity of a model passed from Python: a hash of everything that its answers depend on, besides the caller's data.

`code_of` hashes the code that runs and the plain state it uses, `answers_of` what the model returns and its gradients.
"""

from __future__ import annotations

import copy
import copyreg
import dis
import functools
import hashlib
import logging
import re
import sys
import types
import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from siegebench.cells import digest
from siegebench.classifier import Classifier
from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.kinds import FOLDERS

LIBRARIES = {"torch", "torchvision", "timm", "numpy", "siegebench", *sys.builtin_module_names, *sys.stdlib_module_names}
PLAIN = (
    type(None), bool, int, float, complex, str, bytes, type(...), range, slice, Path,
    torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format,
)  # fmt: skip
CONTAINERS = (list, tuple, set, frozenset, deque, dict, types.MappingProxyType)
HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
MANAGED = frozenset(vars(nn.Module())) | {"_compiled_call_impl"}  # attributes that every module has
COUNTED = {"_backward_cls", "_autograd_function_id", "_abc_impl"}  # attributes of classes that differ between processes
IMAGES = 8  # images of the probe
DIGITS = 3  # of its numbers, which are computed in float64


def code_of(model: nn.Module) -> str:
    """Hash of a module's code and plain state; equal in every process that runs the same code.

    It covers, for the module and all modules inside it: the bytecode of the methods of their classes, with defaults,
    closures, and the functions, classes and values that they read from their own modules; hooks; attributes such as
    numbers, texts, tensors, functions and objects; buffers that are not saved; the code of TorchScript. Comments,
    blank lines, file names and the names of modules do not count.

    Classes and functions of Python, torch, torchvision, timm, numpy and the harness count by their names. Those of
    other installed packages count by the content of their file.
    """
    hasher = _Hasher()
    found = hasher.of(model)
    patched = [part for name, value in _patches() for part in (name, hasher.of(value))]
    return (digest([found, *patched]) if patched else found)[:32]


def _patches() -> Iterator[tuple[str, Any]]:
    """What the process has put in the place of functions of torch, and its hooks on all modules."""
    for owner in (torch, nn.functional, Tensor, nn.Module):
        yield from ((name, value) for name, value in sorted(vars(owner).items()) if _planted(value))
    for name, value in sorted(vars(nn.modules.module).items()):
        if name.startswith("_global_") and name.endswith("_hooks") and value:
            yield name, list(value.values())


def answers_of(model: Classifier, data: ImageSet) -> str:
    """Hash of logits, and of gradients for the images, on a few images with noise smaller than a grey level.

    The pass runs in float64 if the model can, and three digits count: another number of threads or another processor
    gives the same hash.
    """
    draws = Draws(0, data.ids[:IMAGES])
    x = data.pixels(slice(0, IMAGES), torch.float64)
    step = (data.kind.high - data.kind.low) / 255
    x = (x + step * (draws.uniform(x.shape[1:], purpose="probe").double() - 0.5)).clamp(data.kind.low, data.kind.high)
    try:
        found = _passes(copy.deepcopy(model).double(), x, draws)
    except Exception:  # it holds float32 numbers that `double` does not see
        found = _passes(copy.deepcopy(model), x.float(), draws)
    return digest(found)[:16]


def _passes(model: Classifier, x: Tensor, draws: Draws) -> list[Any]:
    """Projections of logits and gradients of each image onto fixed random directions, as text with few digits."""
    x = x.clone().requires_grad_(not model.scores_only)
    with torch.random.fork_rng(devices=[]):  # a module may draw from the global generator
        torch.manual_seed(0)
        z = model(x, draws) if model.randomized else model(x)
    direction = draws.sign(z.shape[1:], purpose="logits").to(z)
    value = (z * direction).sum(dim=1)
    out = [_text(value.detach(), z.detach())]
    if not z.requires_grad:
        return [*out, "no gradient"]
    (g,) = torch.autograd.grad(value.sum(), x, allow_unused=True)
    if g is None:
        return [*out, "no gradient"]
    return [*out, _text((g * draws.sign(g.shape[1:], purpose="pixels").to(g)).flatten(1).sum(dim=1), g)]


def _text(projections: Tensor, of: Tensor) -> list[str]:
    """Each projection relative to the norm of its row, and the norms."""
    norms = of.flatten(1).norm(dim=1)
    shares = torch.where(norms > 0, projections / norms, 0.0)
    return [
        f"{v:.{DIGITS}f} {n:.{DIGITS - 1}e}".replace("-0.000 ", "0.000 ") for v, n in zip(shares, norms, strict=True)
    ]


# ----------------------------------------------------------------------------------------------------------- the hash


class _Hasher:
    """Hashes of values, each computed once."""

    def __init__(self) -> None:
        self._seen: dict[int, str] = {}
        self._alive: list[Any] = []  # so that no id is used twice

    def of(self, value: Any) -> str:
        """The hash of any value; inside a cycle, the position of its first occurrence."""
        if isinstance(value, PLAIN):
            return f"{type(value).__name__} {value!r}"
        if id(value) not in self._seen:
            self._seen[id(value)] = f"visit {len(self._seen)}"
            self._alive.append(value)
            self._seen[id(value)] = hashlib.sha256("\0".join(self._parts(value)).encode("utf-8", "replace")).hexdigest()
        return self._seen[id(value)]

    def _parts(self, value: Any) -> Iterator[str]:
        if isinstance(value, Tensor):
            yield from _tensor(value)
        elif isinstance(value, (np.ndarray, np.generic)):
            yield from _array(value)
        elif isinstance(value, types.CodeType):
            yield from self._code(value)
        elif isinstance(value, types.FunctionType):
            yield from self._function(value)
        elif isinstance(value, type):
            yield from self._class(value)
        elif isinstance(value, nn.Module):
            yield from self._module(value)
        elif isinstance(value, types.MethodType):
            yield from ("method", self.of(value.__func__), self.of(value.__self__))
        elif isinstance(value, functools.partial):
            yield from ("partial", *map(self.of, (value.func, value.args, value.keywords)))
        elif isinstance(value, (staticmethod, classmethod)):
            yield from (type(value).__name__, self.of(value.__func__))
        elif isinstance(value, property):
            yield from ("property", *map(self.of, (value.fget, value.fset)))
        elif isinstance(value, CONTAINERS):
            yield from self._container(value)
        elif isinstance(value, (types.ModuleType, types.BuiltinFunctionType)) or type(value).__module__ == "torch._ops":
            yield from (type(value).__name__, str(getattr(value, "__module__", "")), _name(value), _file(value))
            owner = getattr(value, "__self__", None)
            if owner is not None and not isinstance(owner, (type, types.ModuleType)):
                yield self.of(owner)
        else:
            yield from self._object(value)

    def _container(self, value: Any) -> Iterator[str]:
        yield self.of(type(value)) if type(value) not in CONTAINERS else type(value).__name__
        if isinstance(value, Mapping):
            yield from (self.of(part) for item in value.items() for part in item)
        else:
            items = map(self.of, value)
            yield from sorted(items) if isinstance(value, (set, frozenset)) else items
        for name in ("default_factory", "maxlen"):
            if getattr(value, name, None) is not None:
                yield from (name, self.of(getattr(value, name)))

    def _code(self, code: types.CodeType) -> Iterator[str]:
        yield from (code.co_code.hex(), getattr(code, "co_exceptiontable", b"").hex(), str(code.co_flags))
        yield from map(repr, (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars))
        yield from map(self.of, code.co_consts)

    def _function(self, function: types.FunctionType) -> Iterator[str]:
        home = str(function.__globals__.get("__name__"))
        known = _library(home)
        yield from ("function", f"{home}.{_name(function)}{_file(function)}" if known else self.of(function.__code__))
        yield from map(self.of, (function.__defaults__, function.__kwdefaults__))
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            if name != "__class__":
                yield from (name, self.of(_content(cell)))
        if not known:
            globals_, imported, names = _names(function.__code__)
            for name in sorted(globals_ & function.__globals__.keys()):
                yield from (name, *self._read(function.__globals__[name], names))
            for name in sorted(imported & sys.modules.keys()):
                yield from (name, *self._read(sys.modules[name], names))

    def _read(self, value: Any, names: set[str]) -> Iterator[str]:
        """A value of a module's namespace; of another module of the user, what the code may read from it."""
        yield self.of(value)
        if isinstance(value, types.ModuleType) and not _library(value.__name__):
            for name in sorted(names & vars(value).keys()):
                inner = vars(value)[name]
                if id(inner) not in self._seen:
                    yield from (name, *self._read(inner, names))

    def _class(self, cls: type) -> Iterator[str]:
        yield from ("class", _name(cls))
        if not _library(type(cls).__module__):
            yield self.of(type(cls))
        for base in cls.__mro__[:-1]:
            known = _library(base.__module__)
            yield from (f"{base.__module__}.{_name(base)}", _file(base)) if known else ("own",)
            for name, value in sorted(vars(base).items()):
                if known and not _planted(value):
                    continue
                special = name.startswith("__") and name.endswith("__")
                code = isinstance(value, (types.FunctionType, staticmethod, classmethod, property))
                if name not in COUNTED and (code or not special):
                    yield from (name, self.of(value))

    def _module(self, module: nn.Module) -> Iterator[str]:
        if type(module).__name__ == "OptimizedModule":  # of torch.compile, whose import takes seconds
            module = module._modules["_orig_mod"] or module
        if isinstance(module, torch.jit.ScriptModule):
            yield from self._scripted(module)
        else:
            yield self.of(type(module))
        for name in ("_parameters", "_buffers", "_modules"):
            yield from (name, self.of(dict(getattr(module, name).items())))
        for name in HOOKS:
            hooks = getattr(module, name, None) or {}
            yield from (name, *map(self.of, hooks.values()))
        attributes = {k: v for k, v in vars(module).items() if k not in MANAGED}
        if isinstance(module, Classifier):
            attributes.pop("card", None)  # where the model comes from, not what it does
        if isinstance(module, torch.jit.ScriptModule):
            attributes = {}
        elif isinstance(module, torch.fx.GraphModule):
            attributes = {"code": module.code}
        for name, value in sorted(attributes.items()):
            yield from (name, self.of(value))

    def _scripted(self, module: Any) -> Iterator[str]:
        constants = getattr(module, "code_with_constants", ("", None))[1]
        text = module._c.dump_to_str(True, True, False)  # code and attributes of all modules inside, no parameters
        # positions in files and addresses do not count; names of classes have a counter of the process
        yield from ("script", re.sub(r"__torch__[\w.]*| # .*|0x[0-9a-f]+", "", text))
        yield self.of(getattr(constants, "const_mapping", None))

    def _object(self, value: Any) -> Iterator[str]:
        yield from ("object", self.of(type(value)), _name(value))
        if isinstance(value, (logging.Logger, weakref.ref)):
            return
        inner = getattr(value, "__wrapped__", None)
        if inner is not None:
            yield self.of(inner)
        if isinstance(value, (bytearray, memoryview)):
            yield bytes(value).hex()
            return
        if _library(type(value).__module__):
            yield from map(self.of, _reduced(value))
        state = dict(getattr(value, "__dict__", None) or {})
        for cls in type(value).__mro__:
            slots = vars(cls).get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                if hasattr(value, name) and name not in ("__dict__", "__weakref__"):
                    state[name] = getattr(value, name)
        for name, part in sorted(state.items()):
            yield from (name, self.of(part))


def _library(module: str | None) -> bool:
    """Whether the code of a module counts by name, or by its file if it is installed; entries count by their code."""
    first, _, rest = str(module).partition(".")
    if first == "siegebench":
        return rest.partition(".")[0] not in FOLDERS
    return first in LIBRARIES or _installed(first)


@functools.cache
def _installed(package: str) -> bool:
    file = getattr(sys.modules.get(package), "__file__", None)
    inside = file is not None and {"site-packages", "dist-packages"} & set(Path(file).parts)
    return bool(inside) and package != "__main__"


def _file(value: Any) -> str:
    """Hash of the file of an installed package's module, or of a compiled module; else empty."""
    name = value.__name__ if isinstance(value, types.ModuleType) else str(getattr(value, "__module__", None))
    file = getattr(sys.modules.get(name), "__file__", None)
    first = name.partition(".")[0]
    if first in LIBRARIES or (str(file).endswith(".py") and not _installed(first)):
        return ""
    return _file_hash(file)


@functools.cache
def _file_hash(file: str | None) -> str:
    try:
        return "" if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except OSError:
        return ""


def _reduced(value: Any) -> list[Any]:
    """What pickle would keep of an object whose state is not in Python: a generator of random numbers, a date, ..."""
    if isinstance(value, torch.Generator):
        return [value.get_state()]
    kind, base = type(value), object
    plain = all(getattr(kind, name) is getattr(base, name) for name in ("__reduce_ex__", "__reduce__"))
    if plain and kind not in copyreg.dispatch_table:
        return []
    try:
        found = value.__reduce_ex__(2) if kind not in copyreg.dispatch_table else copyreg.dispatch_table[kind](value)
    except Exception:  # it cannot be pickled
        return []
    return [list(part) if isinstance(part, Iterator) else part for part in found] if isinstance(found, tuple) else []


def _planted(value: Any) -> bool:
    """Whether an attribute of a library's class is a function that comes from elsewhere."""
    return isinstance(value, types.FunctionType) and not _library(str(value.__globals__.get("__name__")))


def _name(value: Any) -> str:
    found = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    return found if isinstance(found, str) else ""


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


def _names(code: types.CodeType) -> tuple[set[str], set[str], set[str]]:
    """(global names that the code reads, modules it imports, all names in it), with the code inside it."""
    globals_, imported, names = set[str](), set[str](), set(code.co_names)
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            globals_.add(str(step.argval))
        elif step.opname == "IMPORT_NAME":
            imported.add(str(step.argval))
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            for mine, others in zip((globals_, imported, names), _names(inner), strict=True):
                mine |= others
    return globals_, imported, names


def _tensor(value: Tensor) -> Iterator[str]:
    yield from ("tensor", str(value.dtype), str(tuple(value.shape)))
    plain = value.detach()
    if plain.is_quantized:
        yield repr(plain.qscheme())
        plain = plain.dequantize()
    if plain.layout is not torch.strided:
        plain = plain.to_dense()
    if plain.device.type != "meta":
        flat = plain.cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        yield hashlib.sha256(flat.view(torch.uint8).numpy().data).hexdigest()


def _array(value: Any) -> Iterator[str]:
    array = np.asarray(value)
    yield from ("array", array.dtype.str, str(array.shape))
    yield repr(array.tolist()) if array.dtype.hasobject else hashlib.sha256(array.tobytes()).hexdigest()
