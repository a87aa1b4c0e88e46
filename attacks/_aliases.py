"""Where a model's code keeps the `apply` of a function of autograd under a name of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache, partial
from operator import setitem
from pathlib import Path
from types import BuiltinMethodType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import nn
from torch.autograd import Function

Put = Callable[[Any], object]  # puts another value in the place where one was found


def aliases(model: nn.Module) -> list[tuple[type[Function], BuiltinMethodType, Put]]:
    """All places that hold `apply` of a function, as in `relu = MyReLU.apply`, and that the model's code can reach.

    They are attributes of its modules and of the objects in them, the global names that its methods use, and the
    variables that its functions enclose; nothing in the code of installed packages.
    """
    found, seen, left = [], {id(model)}, [model]
    while left:
        for value, put in _parts(left.pop()):
            if _is(value, BuiltinMethodType):
                of = value.__self__
                if value.__name__ == "apply" and isinstance(of, type) and issubclass(of, Function):
                    found.append((of, value, put))
            elif id(value) not in seen and not _foreign(value):
                seen.add(id(value))
                left.append(value)
    return found


def _is(value: Any, kind: Any) -> bool:
    """`isinstance` that asks the object nothing: some raise whatever they are asked."""
    return issubclass(type(value), kind)


def _foreign(value: Any) -> bool:
    if _is(value, (nn.Module, dict, list, tuple)):
        return False
    if _is(value, ModuleType):
        return _installed(value.__name__)
    return _installed((value if _is(value, (type, FunctionType, MethodType)) else type(value)).__module__)


@cache
def _installed(name: str) -> bool:
    """Whether a module is part of Python or of an installed package."""
    root = str(name).partition(".")[0]
    origin = getattr(getattr(sys.modules.get(root), "__spec__", None), "origin", None)
    return root in sys.stdlib_module_names or bool({"site-packages", "dist-packages"} & {*Path(str(origin)).parts})


def _parts(value: Any) -> Iterator[tuple[Any, Put]]:
    """What an object refers to."""
    if _is(value, (staticmethod, classmethod)):
        value = value.__func__
    if _is(value, property):
        value = value.fget
    if _is(value, MethodType):
        yield from ((value.__func__, _nowhere), (value.__self__, _nowhere))
    elif _is(value, FunctionType):
        for name in _names(value.__code__) & value.__globals__.keys():
            yield value.__globals__[name], partial(setitem, value.__globals__, name)
        for cell in value.__closure__ or ():
            with suppress(ValueError):  # an empty cell
                yield cell.cell_contents, partial(setattr, cell, "cell_contents")
    elif _is(value, dict):
        for key, part in [*value.items()]:
            yield part, partial(setitem, value, key)
    elif _is(value, (list, tuple)):
        for k, part in enumerate(value):
            yield part, partial(setitem, value, k) if _is(value, list) else _nowhere
    elif _is(value, type):
        for base in value.__mro__:
            if not _foreign(base):
                for name, part in [*vars(base).items()]:
                    yield part, partial(setattr, base, name)
    else:
        with suppress(AttributeError):  # it has no dict
            yield object.__getattribute__(value, "__dict__"), _nowhere
        yield type(value), _nowhere


def _nowhere(value: Any) -> None:
    """For what cannot be replaced where it stands."""


def _names(code: CodeType) -> set[str]:
    """The names that a function uses, and those of the functions inside of it."""
    inner = (part for part in code.co_consts if isinstance(part, CodeType))
    return {*code.co_names}.union(*map(_names, inner))
