"""A view of a model in which steps and cuts have the gradient of the identity, wherever they stand in its code."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import BuiltinMethodType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.overrides import TorchFunctionMode

from siegebench.classifier import Classifier, Wrapped
from siegebench.draws import Draws

from ._aliases import Put, aliases

STEPS = {"round", "floor", "ceil", "trunc", "fix", "sign", "sgn"}
ABOVE, BELOW = {"gt", "ge"}, {"lt", "le"}
WHOLE, REMAINDER = {"floor_divide", "floordiv"}, {"remainder", "fmod", "mod"}
CASTS = {"to", "type", "type_as", "int", "long", "short", "byte", "char", "float", "double"}
CASTS |= {"quantize_per_tensor", "quantize_per_channel", "dequantize"}
BITS = {"and", "or", "bitwise_and", "bitwise_or"}
LEFT, RIGHT = {"lshift", "bitwise_left_shift"}, {"rshift", "bitwise_right_shift"}
VIEWS = {"view", "reshape", "flatten", "permute", "transpose", "contiguous", "clone", "squeeze", "unsqueeze", "expand"}
VIEWS |= {"repeat", "getitem"}
LINEAR = {"add", "sub", "mul", "div", "true_divide", "truediv", *VIEWS}
PRODUCTS = {"mul", "multiply", "rmul", "imul"}
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
    gradient of their own, whose forward code is differentiated instead. A comparison that is multiplied by something
    that has a gradient is a mask, and lets it pass where it is true. What leaves torch, such as a detour through numpy,
    stays without gradient. Values do not change.
    """

    def __init__(self, inner: Classifier) -> None:
        super().__init__(inner)
        self._aliases = aliases(inner)

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        if torch.is_grad_enabled():
            with _functions_taken_apart(self._aliases), _Identities():
                z: Tensor = self.inner(x, draws)
            return z
        out: Tensor = self.inner(x, draws)
        return out


class _Identities(TorchFunctionMode):
    """Replaces the gradient of one operation after the other.

    A tensor of integers or truth values has a shadow: the numbers that it would hold without the step, with their
    gradient. When it becomes a tensor of floats again, it gets the gradient of its shadow. What comes from a comparison
    also keeps its values alone, for products in which it is a mask.
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
        plain = name.strip("_")
        if plain in PRODUCTS and len(args) == 2:
            args = _masked(*args)
        out = self._straight(func, name, args, kwargs)
        if isinstance(out, Tensor) and (plain in ABOVE | BELOW or (hasattr(x, "_mask") and plain in VIEWS | CASTS)):
            out._mask = out.detach()  # type: ignore[attr-defined]
        return out

    def _straight(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x = args[0]
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


def _masked(a: Any, b: Any) -> tuple[Any, Any]:
    """The factors of a product; a comparison without its gradient, if the other factor has one and is none."""
    masks = [getattr(factor, "_mask", None) for factor in (a, b)]
    if masks[1] is None and isinstance(b, Tensor) and b.requires_grad:
        return (a if masks[0] is None else masks[0]), b
    if masks[0] is None and a.requires_grad:
        return a, (b if masks[1] is None else masks[1])
    return a, b


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


class _Apart:
    """Stands for MyFunction.apply: runs the operations of the forward code, so that they have their own gradient.

    Args:
        given: what it stands for; it is called in other threads.
        owner: this thread.
    """

    def __init__(self, given: Callable[..., Any], of: type[Function], owner: int) -> None:
        self.given, self.of, self.owner = given, of, owner

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != self.owner or self.of.__module__.startswith("torch."):
            return self.given(*args, **kwargs)
        apart = self.of.setup_context is not Function.setup_context
        return self.of.forward(*args, **kwargs) if apart else self.of.forward(_Context(), *args, **kwargs)


@contextmanager
def _functions_taken_apart(kept: Sequence[tuple[type[Function], BuiltinMethodType, Put]]) -> Iterator[None]:
    """Inside, functions of autograd, not of torch, that this thread calls are the operations of their forward code.

    Args:
        kept: where `apply` of some of them is kept under another name.
    """
    given, owner = Function.__dict__["apply"], threading.get_ident()

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        return _Apart(given.__get__(None, cls), cls, owner)(*args, **kwargs)

    with _alone:
        Function.apply = classmethod(apply)
        for of, alias, put in kept:
            put(_Apart(alias, of, owner))
        try:
            yield
        finally:
            Function.apply = given
            for _, alias, put in kept:
                put(alias)
