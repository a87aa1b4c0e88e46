"""A tiny network and the same network as an ONNX graph, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from siegebench.draws import Draws

onnx: Any = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
helper, numpy_helper = onnx.helper, onnx.numpy_helper


def net(classes: int = 10, channels: int = 3) -> nn.Module:
    """Two layers whose weights are always the same."""
    made = nn.Sequential(
        nn.Conv2d(channels, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes)
    ).eval()
    with torch.no_grad():
        for i, parameter in enumerate(made.parameters()):
            parameter.copy_(Draws(7, torch.tensor([i])).normal(parameter.shape)[0])
    return made


def graph(source: nn.Module, shape: tuple[Any, ...] = ("n", 3, "h", "w"), **changes: Any) -> Any:
    """The ONNX graph of `net()`; `changes` replace parts: nodes, outputs, opsets, kind of the input."""
    names = ("w", "b", "v", "c")
    weights = [numpy_helper.from_array(p.detach().numpy(), n) for p, n in zip(source.parameters(), names, strict=True)]
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["conv"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("GlobalAveragePool", ["relu"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "v", "c"], ["scores"], transB=1),
    ]
    of = helper.make_tensor_value_info
    outputs = {"scores": [shape[0], len(list(source.parameters())[-1])], **changes.get("outputs", {})}
    made = helper.make_graph(
        [*nodes, *changes.get("nodes", [])],
        "tiny",
        [of("x", changes.get("kind", onnx.TensorProto.FLOAT), list(shape))],
        [of(name, onnx.TensorProto.FLOAT, dims) for name, dims in outputs.items()],
        weights,
    )
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(d, 1) for d in changes.get("opsets", ()))]
    return helper.make_model(made, opset_imports=opsets, ir_version=8)


def onnx_file(folder: Path, name: str = "net.onnx", **changes: Any) -> Path:
    path = folder / name
    onnx.save(graph(net(), **changes), str(path))
    return path
