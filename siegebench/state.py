"""What a module keeps from one pass to the next besides its parameters: buffers, attributes, lists, closures.

A model that counts its calls or remembers images gives other answers later than at first. Evaluation puts its state
back after every pass, so that an answer depends on the images of the pass only.
"""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

MOST = 20_000  # objects that are looked at
OWN = frozenset(vars(nn.Module())) - {"training"}  # attributes of every module: its parameters, modules, hooks
# packages whose objects are no state of a model: torch, and what threads wait on, which must not be put back under them
FOREIGN = frozenset(("torch", "builtins", "threading", "_thread", "multiprocessing", "concurrent", "asyncio"))
PLAIN = (int, float, complex, bool, str, bytes, type(None))


class _Walk:
    """Everything that can change in a pass, found from a module through attributes, containers and closures."""

    def __init__(self, model: nn.Module) -> None:
        self.modules: list[nn.Module] = []
        self.spaces: list[tuple[str, dict[str, Any]]] = []  # names to values: attributes of a module or an object
        self.containers: list[tuple[str, Any]] = []
        self.cells: list[tuple[str, Any]] = []
        self.seen: dict[int, Any] = {}
        self._visit("", model)

    def _visit(self, name: str, value: Any) -> None:
        if isinstance(value, (*PLAIN, Tensor, torch.Generator, type, types.ModuleType)) or id(value) in self.seen:
            return
        if len(self.seen) >= MOST:
            return
        self.seen[id(value)] = value  # kept, so that no id is reused
        if isinstance(value, nn.Module):
            self.modules.append(value)
            if isinstance(value, torch.jit.ScriptModule):
                return
            self.spaces.append((name, value._buffers))
            self.spaces.append((name, vars(value)))
            self._each(name, {k: v for k, v in vars(value).items() if k not in OWN})
            self._each(name, value._modules)
        elif isinstance(value, types.MethodType):
            self._visit(name, value.__self__)
            self._visit(name, value.__func__)
        elif isinstance(value, types.FunctionType):
            cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
            for free, cell in cells:
                self.cells.append((f"{name}.{free}", cell))
                self._visit(f"{name}.{free}", _contents(cell))
            self._each(name, dict(enumerate(value.__defaults__ or ())))
            self._each(name, vars(value))
        elif isinstance(value, (list, deque, set, bytearray)):
            self.containers.append((name, value))
            self._each(name, dict(enumerate(value)))
        elif isinstance(value, dict):
            self.containers.append((name, value))
            self._each(name, value)
        elif isinstance(value, tuple):
            self._each(name, dict(enumerate(value)))
        elif hasattr(value, "__dict__") and type(value).__module__.partition(".")[0] not in FOREIGN:
            self.spaces.append((name, vars(value)))
            self._each(name, vars(value))

    def _each(self, name: str, values: Any) -> None:
        for key, value in list(values.items()):
            self._visit(f"{name}.{key}".lstrip("."), value)

    def state(self) -> Iterator[tuple[str, Any]]:
        """Names and values of all that can change."""
        for name, space in self.spaces:
            for key, value in space.items():
                if key not in OWN:
                    yield f"{name}.{key}".lstrip("."), value
        for name, container in self.containers:
            yield f"{name} (its length)", len(container)
            values = container.values() if isinstance(container, dict) else container
            for i, value in enumerate(values):
                yield f"{name}.{i}", value
        for name, cell in self.cells:
            yield name, _contents(cell)


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def reachable(model: nn.Module) -> list[nn.Module]:
    """The modules of a model, also those in lists, objects and closures, where `modules()` does not find them."""
    return _Walk(model).modules


def summary(model: nn.Module) -> dict[str, Any]:
    """The state by name, in a form that can be compared: tensors by shape and values, other objects by their type."""
    out: dict[str, Any] = {}
    for name, value in _Walk(model).state():
        if isinstance(value, Tensor):
            numbers = value.detach().double() if value.is_floating_point() else value.detach()
            out[name] = (tuple(value.shape), numbers.flatten().tolist() if value.numel() < 64 else _hash(numbers))
        else:
            out[name] = value if isinstance(value, PLAIN) else type(value).__name__
    return out


def _hash(numbers: Tensor) -> tuple[float, float]:
    flat = numbers.flatten().double()
    return float(flat.sum()), float((flat * torch.arange(1, len(flat) + 1, device=flat.device)).sum())


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Names whose values differ between two summaries."""
    return [name for name in {**before, **after} if before.get(name, before) != after.get(name, before)]


@contextmanager
def kept(model: nn.Module) -> Iterator[None]:
    """Put back everything that a pass inside changes. Tensors are copied for the pass, so that gradients stay valid."""
    walk = _Walk(model)
    spaces = [(space, {k: v for k, v in space.items() if k not in OWN}) for _, space in walk.spaces]
    for space, own in spaces:
        for name, value in own.items():
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and value.is_leaf:
                space[name] = value.clone()  # what is written into it in place is lost with the copy
    containers = [(c, c.copy()) for _, c in walk.containers]
    cells = [(cell, _contents(cell)) for _, cell in walk.cells]
    try:
        yield
    finally:
        for space, own in spaces:
            for name in [k for k in space if k not in own and k not in OWN]:
                del space[name]
            space.update(own)
        for container, before in containers:
            container.clear()
            container.extend(before) if hasattr(container, "extend") else container.update(before)
        for cell, value in cells:
            if value is not None or _contents(cell) is not None:
                cell.cell_contents = value
