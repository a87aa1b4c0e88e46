"""A view of a model in which steps and cuts have the gradient of the identity, wherever they stand in its code."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.overrides import TorchFunctionMode

from siegebench.classifier import Wrapped
from siegebench.draws import Draws

STEPS = {"round", "floor", "ceil", "trunc", "fix", "sign", "sgn"}
ABOVE, BELOW = {"gt", "ge"}, {"lt", "le"}
WHOLE, REMAINDER = {"floor_divide", "floordiv"}, {"remainder", "fmod", "mod"}
CASTS = {"to", "type", "type_as", "int", "long", "short", "byte", "char", "float", "double"}
CASTS |= {"quantize_per_tensor", "quantize_per_channel", "dequantize"}
BITS = {"and", "or", "bitwise_and", "bitwise_or"}
LEFT, RIGHT = {"lshift", "bitwise_left_shift"}, {"rshift", "bitwise_right_shift"}
LINEAR = {"add", "sub", "mul", "div", "true_divide", "truediv", "view", "reshape", "flatten", "permute", "transpose"}
LINEAR |= {"contiguous", "clone", "squeeze", "unsqueeze", "expand", "repeat", "getitem"}
CUTS = {"detach", "detach_"}
READS = {"numpy", "item", "tolist", "__array__", "__bool__", "__float__", "__int__"}
HOOKS = {"register_hook", "register_post_accumulate_grad_hook"}
BEST = {"argmax", "one_hot"}
DATA = Tensor.data.__get__  # type: ignore[attr-defined]

_alone = threading.Lock()  # functions of autograd are replaced for one thread at a time


class Straight(Wrapped):
    """The same model; in a pass with gradients, operations that have none get that of the identity.

    These are rounding, signs, whole division, casts to integers, comparisons that are cast back and one-hot codes of
    the largest number; `detach` and `no_grad`; hooks on tensors, which are left out; and functions of autograd with a
    gradient of their own, whose forward code is differentiated instead. What leaves torch, such as a detour through
    numpy, stays without gradient. Values do not change.
    """

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        if torch.is_grad_enabled():
            with _functions_taken_apart(), _Identities():
                z: Tensor = self.inner(x, draws)
            return z
        out: Tensor = self.inner(x, draws)
        return out


class _Identities(TorchFunctionMode):
    """Replaces the gradient of one operation after the other.

    A tensor of integers or truth values has a shadow: the numbers that it would hold without the step, with their
    gradient. When it becomes a tensor of floats again, it gets the gradient of its shadow.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if func is torch._C._set_grad_enabled:
            return None
        if name in HOOKS:
            return _Handle()
        x = args[0] if args else None
        if not isinstance(x, Tensor):
            return func(*args, **kwargs)
        if name in CUTS or func == DATA:
            return x
        if name in READS:
            return func(x.detach(), *args[1:], **kwargs)
        in_place = name.rstrip("_") in STEPS and name.endswith("_")
        shadow = x.clone() if in_place else getattr(x, "_shadow", x if x.is_floating_point() else None)
        out = func(*args, **kwargs)
        if name in BEST and isinstance(out, Tensor):  # the one-hot code of the largest number: the numbers
            out._scores = x if name == "argmax" else getattr(x, "_scores", None)  # type: ignore[attr-defined]
            shadow = out._scores if name == "one_hot" else None  # type: ignore[attr-defined]
        if shadow is None or not isinstance(out, Tensor):
            return out
        stepped = not out.is_floating_point() or not x.is_floating_point()
        soft = _without_step(func, name.strip("_"), shadow, args[1:], kwargs, stepped)
        if soft is None or soft.shape != out.shape:
            return out
        if not out.is_floating_point():
            out._shadow = soft  # type: ignore[attr-defined]
            return out
        straight = out.detach() + (soft - soft.detach()).to(out.dtype)
        return x.copy_(straight) if in_place else straight


def _without_step(
    func: Any, name: str, x: Tensor, more: tuple[Any, ...], kwargs: dict[str, Any], stepped: bool
) -> Tensor | None:
    """What an operation would return if it made no step; None if it makes none, or one of another kind."""
    if name in STEPS | BITS or name == "one_hot" or (name in CASTS and stepped):
        return x
    if name in ABOVE | BELOW:
        return x - more[0] if name in ABOVE else more[0] - x
    if name in WHOLE:
        return x / more[0]
    if name in REMAINDER:
        return 0 * x
    if name in LEFT | RIGHT:
        factor = 2.0 ** more[0]
        return x * factor if name in LEFT else x / factor
    if name in LINEAR and stepped:
        soft = func(x, *more, **kwargs)
        return soft if isinstance(soft, Tensor) else None
    return None


class _Handle:
    def remove(self) -> None: ...


class _Context:
    """Takes what a function of autograd writes to its context, and forgets it."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


@contextmanager
def _functions_taken_apart() -> Iterator[None]:
    """Inside, functions of autograd that this thread calls are the operations of their forward code.

    Not those of torch, and not those whose `apply` was kept under another name before.
    """
    given, owner = Function.__dict__["apply"], threading.get_ident()

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != owner or cls.__module__.startswith("torch."):
            return given.__get__(None, cls)(*args, **kwargs)
        apart = cls.setup_context is not Function.setup_context
        return cls.forward(*args, **kwargs) if apart else cls.forward(_Context(), *args, **kwargs)

    with _alone:
        Function.apply = classmethod(apply)
        try:
            yield
        finally:
            Function.apply = given
