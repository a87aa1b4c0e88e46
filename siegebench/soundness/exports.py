"""Instances as files for outside verifiers: networks in ONNX, balls in VNN-LIB."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from siegebench.classifier import Network
from siegebench.errors import MissingExtra, NotApplicable
from siegebench.soundness.planting import Planted

OPSET, IR = 13, 8  # old enough for most verifiers
SIMPLE = {nn.ReLU: "Relu", nn.Tanh: "Tanh", nn.Sigmoid: "Sigmoid", nn.Flatten: "Flatten"}


def write_onnx(model: Network, shape: tuple[int, ...], path: Path) -> None:
    """The layers of a network behind its normalisation, for inputs [1, C, H, W].

    Args:
        shape: (C, H, W) of the inputs.

    Raises:
        MissingExtra: without the package onnx.
        NotApplicable: for a layer that is none of those that planted networks have.
    """
    try:
        import onnx
        from onnx import TensorProto, helper, numpy_helper
    except ImportError:
        raise MissingExtra("onnx", "onnx", "an ONNX file") from None
    nodes: list[Any] = []
    weights: list[Any] = []
    layers: Any = model.net
    last = len(layers) - 1
    for i, layer in enumerate(layers):
        inputs, output = ["input" if i == 0 else f"h{i}"], "output" if i == last else f"h{i + 1}"
        for name, value in layer.named_parameters():
            inputs.append(f"{name}_{i}")
            weights.append(numpy_helper.from_array(value.detach().cpu().numpy(), f"{name}_{i}"))
        operation, attributes = _operation(layer)
        nodes.append(helper.make_node(operation, inputs, [output], **attributes))
    ends = (
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, *shape])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, model.num_classes])],
    )
    graph = helper.make_graph(nodes, model.card.name, *ends, weights)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    onnx.checker.check_model(made)
    onnx.save(made, str(path))


def _operation(layer: nn.Module) -> tuple[str, dict[str, Any]]:
    """The name of an ONNX operation and its attributes."""
    if isinstance(layer, nn.Linear):
        return "Gemm", {"transB": 1}
    if isinstance(layer, nn.Conv2d):
        return "Conv", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [1, 1]}
    if isinstance(layer, nn.AvgPool2d):
        attributes = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [1, 1], "count_include_pad": 1}
        return "AveragePool", attributes
    if type(layer) not in SIMPLE:
        raise NotApplicable(f"{type(layer).__name__} cannot be written as ONNX here; it needs a line in _operation")
    return SIMPLE[type(layer)], {}


def vnnlib(low: Tensor, high: Tensor, label: int, classes: int) -> str:
    """The question whether an input in [low, high] gets another class, in VNN-LIB; `sat` is a counterexample.

    Args:
        low, high: flat, in the units of the ONNX file.
    """
    n = len(low)
    lines = [f"(declare-const X_{i} Real)" for i in range(n)]
    lines += [f"(declare-const Y_{j} Real)" for j in range(classes)]
    for i, (least, most) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
        lines += [f"(assert (>= X_{i} {_real(least)}))", f"(assert (<= X_{i} {_real(most)}))"]
    others = " ".join(f"(and (>= Y_{j} Y_{label}))" for j in range(classes) if j != label)
    return "\n".join([*lines, f"(assert (or {others}))", ""])


def _real(value: float) -> str:
    """A number without an exponent, exact."""
    text = format(Decimal(value), "f")
    return text if "." in text else f"{text}.0"


def write(planted: Planted, folder: Path) -> list[tuple[Path, Path]]:
    """The files of each point, (ONNX, VNN-LIB), in the order of the points.

    The inputs of the ONNX file are those of the network behind its normalisation, 2 scale (x - 1/2).

    Raises:
        MissingExtra, NotApplicable: as `write_onnx` does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    network = folder / f"{planted.name}.onnx"
    write_onnx(planted.model, tuple(planted.x.shape[1:]), network)
    low, high = (planted.model._normalised(corner).flatten(1) for corner in planted.bounds)
    out = []
    for i, label in enumerate(planted.y.tolist()):
        path = folder / f"{planted.name}_{i}.vnnlib"
        path.write_text(vnnlib(low[i], high[i], label, planted.model.num_classes), encoding="utf-8")
        out.append((network, path))
    return out
