"""A network as a list of operations that can be bounded, found by tracing it with torch.fx."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from siegebench.bounds import Affine, Dense, Map, MaxPool, Monotone, Op, Product, Sum, values
from siegebench.classifier import Classifier, Network
from siegebench.clipping import Unclipped
from siegebench.errors import NotApplicable
from siegebench.inputs import Restored

CLOSE = 1e-3  # largest difference of the logits, relative to the largest
THE_BATCH = object()  # the number of images, among the arguments of an operation

SAME = (nn.Identity, nn.Dropout, nn.Dropout2d)
POOLS = (nn.AvgPool2d, nn.AdaptiveAvgPool2d)
ACTIVATIONS = (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.LeakyReLU, nn.ELU, nn.Softplus)
FUNCTIONS: dict[Any, Map] = {
    **dict.fromkeys((F.relu, torch.relu, "relu", "relu_"), F.relu),
    **dict.fromkeys((F.tanh, torch.tanh, "tanh"), torch.tanh),
    **dict.fromkeys((F.sigmoid, torch.sigmoid, "sigmoid"), torch.sigmoid),
}
ADD = (operator.add, operator.iadd, torch.add, "add", "add_")
TIMES = (operator.mul, operator.imul, torch.mul, "mul", "mul_")


def behind(model: Classifier) -> Classifier:
    """The model in the wrappers that an evaluation puts around it; they answer alike in the box of images."""
    while isinstance(model, (Restored, Unclipped)):
        model = model.inner
    return model


def operations(model: Classifier, x: Tensor) -> list[Op]:
    """The operations from the images to the logits, with the layers of the model, so that gradients reach its weights.

    Args:
        model: a network, alone or in the wrappers of an evaluation.
        x: some images [n, ...], on which the logits are compared with those of the model.

    Raises:
        NotApplicable: names the first part that is not known.
    """
    net = behind(model)
    if not isinstance(net, Network):
        raise NotApplicable(f"{type(net).__name__} cannot be bounded: bounds are for networks without other steps")
    if net.size is not None and x.shape[-2:] != net.size:
        raise NotApplicable(f"{net.card.name} resizes its images, which is not bounded")
    try:
        graph = fx.symbolic_trace(net.net)
    except Exception as error:  # control flow on the values, and whatever else a network does
        raise NotApplicable(f"{net.card.name} cannot be traced: {str(error).splitlines()[0][:200]}") from None
    ops = _Reader(net, graph).ops
    with torch.no_grad():
        z, found = model(x), values(ops, x)
        if found.shape != z.shape or float((found - z).abs().max()) > CLOSE * float(z.abs().max().clamp(min=1)):
            raise NotApplicable(f"{net.card.name}: its traced operations give other logits than the network")
    return ops


class _Reader:
    """Reads the nodes of a graph one after the other."""

    def __init__(self, net: Network, graph: fx.GraphModule) -> None:
        self.net, self.graph = net, graph
        self.ops: list[Op] = []
        self.known: dict[fx.Node, Any] = {}  # the number of its operation, or a constant in a list of one
        for node in graph.graph.nodes:
            match node.op:
                case "placeholder":
                    if self.ops:
                        raise NotApplicable(f"{net.card.name} has several inputs")
                    self._add(_scaled("normalisation", 0, net.std.reciprocal(), -net.mean / net.std), node)
                case "get_attr":
                    self.known[node] = [_attribute(graph, node.target)]
                case "call_module":
                    self._module(node, graph.get_submodule(node.target))
                case "output":
                    self._output(node)
                case _:
                    self._call(node)

    def _refuse(self, node: fx.Node, what: str) -> NotApplicable:
        return NotApplicable(f"{self.net.card.name}: layer {node.name!r} ({what}) cannot be bounded")

    def _add(self, op: Op, node: fx.Node) -> None:
        self.ops.append(op)
        self.known[node] = len(self.ops)

    def _input(self, node: fx.Node) -> int:
        """The number of the operation that a node works on."""
        first = node.args[0] if node.args else None
        found = self.known.get(first) if isinstance(first, fx.Node) else None
        if not isinstance(found, int):
            raise self._refuse(node, "without the images")
        return found

    def _output(self, node: fx.Node) -> None:
        self._input(node)
        if self.known[node.args[0]] != len(self.ops):  # type: ignore[index]
            raise self._refuse(node, "an output that is not the last layer")

    def _module(self, node: fx.Node, layer: nn.Module) -> None:
        at, name = self._input(node), str(node.target)
        if isinstance(layer, SAME):
            self.known[node] = at
        elif isinstance(layer, ACTIVATIONS):
            if not _bends(layer):
                raise self._refuse(node, f"{type(layer).__name__} with these parameters")
            convex = not isinstance(layer, (nn.Tanh, nn.Sigmoid))
            self._add(Monotone(name, (at,), partial(_out_of_place, layer), convex), node)
        elif isinstance(layer, nn.Linear):
            f, spread, square = _weighted(F.linear, layer, {})
            self._add(Dense(name, (at,), f, spread, square, True, layer), node)
        elif isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros":
            how = {k: getattr(layer, k) for k in ("stride", "padding", "dilation", "groups")}
            self._add(Affine(name, (at,), *_weighted(F.conv2d, layer, how), True), node)
        elif isinstance(layer, (nn.BatchNorm2d, nn.BatchNorm1d)) and layer.running_mean is not None:
            self._add(_normed(name, at, layer), node)
        elif isinstance(layer, POOLS):
            self._add(_positive(name, at, layer), node)
        elif isinstance(layer, nn.Flatten):
            self._add(_moved(name, at, layer), node)
        elif isinstance(layer, nn.MaxPool2d) and not layer.ceil_mode:
            how = {k: getattr(layer, k) for k in ("kernel_size", "stride", "padding", "dilation")}
            self._add(MaxPool(name, (at,), partial(_maxima, how)), node)
        else:
            raise self._refuse(node, type(layer).__name__)

    def _call(self, node: fx.Node) -> None:
        """A function or a method."""
        called, name = node.target, getattr(node.target, "__name__", str(node.target))
        if self._of_shape(node, called):
            return
        given = [self.known.get(a) if isinstance(a, fx.Node) else [a] for a in node.args]
        rest: list[Any] = [None if isinstance(g, int) or g is None else g[0] for g in given[1:]]
        if called in (*ADD, *TIMES) and len(given) == 2:
            self._pair(node, name, given, called in ADD)
            return
        at = self._input(node)
        if called in FUNCTIONS:
            self._add(Monotone(name, (at,), FUNCTIONS[called], FUNCTIONS[called] is F.relu), node)
        elif called in (F.dropout,):
            self.known[node] = at
        elif called in (torch.flatten, "flatten"):
            self._add(_moved(name, at, lambda t: t.flatten(*(rest or node.kwargs.values() or (0,)))), node)
        elif called in ("view", "reshape", torch.reshape):
            sizes = rest[0] if len(rest) == 1 and isinstance(rest[0], (tuple, list)) else rest
            inner: list[Any] = [self.known[s][0] if isinstance(s, fx.Node) else s for s in sizes[1:]]
            if not all(isinstance(s, int) for s in inner):
                raise self._refuse(node, name)
            self._add(_moved(name, at, lambda t: t.reshape(len(t), *inner)), node)
        elif called in ("mean", torch.mean):
            self._mean(node, name, at, rest)
        elif called is F.pad and set(node.kwargs) <= {"mode", "value"} and not node.kwargs.get("value"):
            if node.kwargs.get("mode", "constant") != "constant" or any(
                r not in ("constant", 0, 0.0) for r in rest[1:]
            ):
                raise self._refuse(node, "padding that is not zero")
            self._add(_moved(name, at, lambda t: F.pad(t, rest[0])), node)
        elif called in (F.adaptive_avg_pool2d,):
            self._add(_positive(name, at, nn.AdaptiveAvgPool2d(rest[0])), node)
        elif called is operator.getitem and isinstance(node.args[1], tuple) and node.args[1][:1] == (slice(None),):
            part: Any = node.args[1]
            self._add(_moved(name, at, lambda t: t[part]), node)
        else:
            raise self._refuse(node, name)

    def _of_shape(self, node: fx.Node, called: Any) -> bool:
        """Whether a node only asks for the shape of a layer, or checks it; its value is then a constant."""
        of = self.known.get(node.args[0]) if isinstance(node.args[0], fx.Node) else None
        asked = node.args[1] if len(node.args) > 1 else None
        if called == "size" and asked == 0:
            found: Any = THE_BATCH
        elif called is getattr:
            found = (THE_BATCH,) if asked == "shape" else None
        elif called is operator.getitem and isinstance(of, list) and asked == 0:
            found = of[0][0]
        elif called in (torch._assert, operator.eq):
            found = None
        else:
            return False
        self.known[node] = [found]
        return True

    def _pair(self, node: fx.Node, name: str, given: Sequence[Any], adds: bool) -> None:
        layers = [g for g in given if isinstance(g, int)]
        if len(layers) == 2:
            self._add((Sum if adds else Product)(name, (layers[0], layers[1])), node)
            return
        (constant,) = [g[0] for g in given if isinstance(g, list)]
        if not layers or not isinstance(constant, (int, float, Tensor)):
            raise self._refuse(node, name)
        value = torch.as_tensor(constant)
        one = torch.ones((), dtype=value.dtype if value.is_floating_point() else None, device=value.device)
        self._add(_scaled(name, layers[0], one, value) if adds else _scaled(name, layers[0], value, 0 * value), node)

    def _mean(self, node: fx.Node, name: str, at: int, rest: Sequence[Any]) -> None:
        dim: Any = rest[0] if rest else node.kwargs.get("dim")
        keep = bool(rest[1] if len(rest) > 1 else node.kwargs.get("keepdim", False))
        places = (dim,) if isinstance(dim, int) else tuple(dim or ())
        if not places or 0 in places:
            raise self._refuse(node, name)
        self._add(_positive(name, at, lambda t: t.mean(dim=places, keepdim=keep)), node)


# --------------------------------------------------------------------------------------------------- affine operations


def _attribute(graph: fx.GraphModule, target: Any) -> Any:
    found: Any = graph
    for part in str(target).split("."):
        found = getattr(found, part)
    return found


def _maxima(how: dict[str, Any], x: Tensor) -> tuple[Tensor, Tensor]:
    found: tuple[Tensor, Tensor] = F.max_pool2d(x, return_indices=True, **how)
    return found


def _bends(layer: nn.Module) -> bool:
    """Whether an activation with a parameter is monotone and convex."""
    slope = layer.negative_slope if isinstance(layer, nn.LeakyReLU) else getattr(layer, "alpha", 1.0)
    return 0 <= float(slope) <= 1 and float(getattr(layer, "beta", 1.0)) > 0


def _out_of_place(layer: nn.Module, x: Tensor) -> Tensor:
    """An activation; layers that work in place would overwrite bounds that are still needed."""
    found: Tensor = layer(x.clone()) if getattr(layer, "inplace", False) else layer(x)
    return found


def _weighted(call: Callable[..., Tensor], layer: Any, how: dict[str, Any]) -> tuple[Map, Map, Map]:
    """`f`, `spread` and `square` of a linear layer or a convolution."""
    return (
        lambda x: call(x, layer.weight, layer.bias, **how),
        lambda r: call(r, layer.weight.abs(), None, **how),
        lambda v: call(v, layer.weight.square(), None, **how),
    )


def _scaled(name: str, at: int, scale: Tensor, shift: Tensor) -> Affine:
    """y = s x + t, number by number."""
    return Affine(
        name, (at,), lambda x: x * scale.to(x) + shift.to(x), lambda r: r * scale.to(r).abs(),
        lambda v: v * scale.to(v).square(), False,
    )  # fmt: skip


def _normed(name: str, at: int, layer: Any) -> Affine:
    """A batch norm with its running statistics."""

    def scale(x: Tensor) -> Tensor:
        s = (layer.running_var + layer.eps).rsqrt()
        return (s if layer.weight is None else s * layer.weight).view(1, -1, *(1,) * (x.dim() - 2))

    def f(x: Tensor) -> Tensor:
        shape = (1, -1, *(1,) * (x.dim() - 2))
        y = (x - layer.running_mean.view(shape)) * scale(x)
        return y if layer.bias is None else y + layer.bias.view(shape)

    return Affine(name, (at,), f, lambda r: r * scale(r).abs(), lambda v: v * scale(v).square(), False)


def _moved(name: str, at: int, f: Map) -> Affine:
    """An operation that moves numbers, or leaves some out."""
    return Affine(name, (at,), f, f, f, False)


def _positive(name: str, at: int, f: Map) -> Affine:
    """A linear operation whose weights are at least zero."""
    return Affine(name, (at,), f, f, None, True)
