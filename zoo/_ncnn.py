"""Reads a network in the format of ncnn: the layers that YOLOX needs, as a differentiable module.

A `.param` file lists the layers with their inputs, outputs and numbered parameters. The `.bin` file beside it has the
weights of the convolutions in the order of the list, as float16 or float32, and their biases as float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siegebench.errors import ModelError

MAGIC = "7767517"
HALF, SINGLE = 0x01306B47, 0  # what stands before weights
CONVOLUTIONS = ("Convolution", "ConvolutionDepthWise")
KNOWN = (
    *CONVOLUTIONS, "Input", "Split", "Swish", "BinaryOp", "Concat", "Pooling", "Interp", "Reshape", "Permute",
    "YoloV5Focus",
)  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """A line of the `.param` file; `numbers` are its parameters by their number."""

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    numbers: dict[int, float]

    def number(self, key: int, default: float = 0) -> int:
        return int(self.numbers.get(key, default))


class NcnnNet(nn.Module):
    """The network of a pair of files, without batch: ncnn's axes 0, 1, 2 are 1, 2, 3 here.

    Raises:
        ModelError: when a file is damaged, or has layers or values that are not known here.
    """

    def __init__(self, param: Path, weights: Path) -> None:
        super().__init__()
        self.layers = _layers(param)
        self.convolutions = nn.ModuleDict()
        reader = _Reader(weights)
        for layer in self.layers:
            if layer.kind in CONVOLUTIONS:
                self.convolutions[layer.name] = _convolution(layer, reader)
        reader.end()

    def forward(self, x: Tensor) -> Tensor:
        """What the last layer returns."""
        held = {self.layers[0].outputs[0]: x}
        for layer in self.layers[1:]:
            out = self._run(layer, [held[name] for name in layer.inputs])
            held.update(dict.fromkeys(layer.outputs, out))
        return held[self.layers[-1].outputs[0]]

    def _run(self, layer: Layer, given: list[Tensor]) -> Tensor:
        x = given[0]
        match layer.kind:
            case "Convolution" | "ConvolutionDepthWise":
                out: Tensor = self.convolutions[layer.name](x)
                return out.sigmoid() if layer.number(9) == 4 else out
            case "Swish":
                return F.silu(x)
            case "BinaryOp":
                return given[0] + given[1]
            case "Concat":
                return torch.cat(given, dim=layer.number(0) + 1)
            case "Pooling":
                return F.max_pool2d(x, layer.number(1), layer.number(2, 1), layer.number(3))
            case "Interp":
                return F.interpolate(x, scale_factor=layer.numbers[1])
            case "Reshape":
                return x.reshape(len(x), layer.number(1), -1)
            case "Permute":
                return x.transpose(1, 2)
            case "YoloV5Focus":
                return torch.cat([x[:, :, down::2, right::2] for right in (0, 1) for down in (0, 1)], dim=1)
            case _:  # Split
                return x


def _layers(path: Path) -> list[Layer]:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    if not lines or lines[0].strip() != MAGIC:
        raise ModelError(f"{path}: expected the description of a network for ncnn, which begins with {MAGIC}")
    try:
        layers = [_layer(line.split()) for line in lines[2:] if line.strip()]
        count = int(lines[1].split()[0])
    except (ValueError, IndexError) as error:
        raise ModelError(f"{path}: damaged: {error}") from None
    if len(layers) != count or not layers or layers[0].kind != "Input":
        raise ModelError(f"{path}: {len(layers)} layers, its second line says {count}; the first must be an Input")
    for layer in layers:
        fault = _unknown(layer)
        if fault:
            raise ModelError(f"{path}: layer {layer.name}: {fault}; known layers: {', '.join(KNOWN)}")
    return layers


def _layer(words: list[str]) -> Layer:
    inputs, outputs = int(words[2]), int(words[3])
    names, numbers = words[4 : 4 + inputs + outputs], words[4 + inputs + outputs :]
    parsed = {int(key): float(value) for key, _, value in (number.partition("=") for number in numbers)}
    return Layer(words[0], words[1], tuple(names[:inputs]), tuple(names[inputs:]), parsed)


def _unknown(layer: Layer) -> str:
    """What of a layer is not known here, for a message; empty if it is."""
    used = {
        "BinaryOp": {0: 0}, "Pooling": {0: 0}, "Interp": {0: 1}, "Permute": {0: 1}, "Reshape": {0: -1},
    }.get(layer.kind, {})  # fmt: skip
    if layer.kind not in KNOWN:
        return f"{layer.kind} is not known"
    if layer.kind in CONVOLUTIONS and layer.number(9) not in (0, 4):
        return f"activation {layer.number(9)} is not known"
    wrong = [f"{key}={layer.number(key)}" for key, value in used.items() if layer.number(key) != value]
    return f"{layer.kind} with {', '.join(wrong)} is not known" if wrong else ""


class _Reader:
    """The numbers of a `.bin` file, from its beginning to its end."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise ModelError(f"{path}: no such file; the weights must lie beside the .param file")
        self.path, self.held, self.at = path, path.read_bytes(), 0

    def weights(self, count: int) -> Tensor:
        tag = int(np.frombuffer(self._bytes(4), "<u4")[0])
        if tag not in (HALF, SINGLE):
            raise ModelError(f"{self.path}: weights in the format {tag:#x}; expected float16 or float32")
        out = torch.from_numpy(self._numbers(count, "<f2" if tag == HALF else "<f4"))
        self.at += -self.at % 4
        return out

    def bias(self, count: int) -> Tensor:
        return torch.from_numpy(self._numbers(count, "<f4"))

    def end(self) -> None:
        if self.at != len(self.held):
            raise ModelError(
                f"{self.path}: {len(self.held)} bytes, the layers have {self.at}; is it of another network?"
            )

    def _numbers(self, count: int, kind: str) -> np.ndarray:
        found = np.frombuffer(self._bytes(count * np.dtype(kind).itemsize), kind).astype(np.float32)
        if not np.isfinite(found).all():
            raise ModelError(f"{self.path}: has weights that are not finite")
        return found

    def _bytes(self, count: int) -> bytes:
        piece = self.held[self.at : self.at + count]
        self.at += count
        if len(piece) < count:
            raise ModelError(f"{self.path}: {len(self.held)} bytes, the layers have more; is it of another network?")
        return piece


def _convolution(layer: Layer, reader: _Reader) -> nn.Conv2d:
    outside, kernel, count = layer.number(0), layer.number(1), layer.number(6)
    groups, biased = layer.number(7, 1), bool(layer.number(5))
    inside = count // (outside * kernel**2) * groups
    conv = nn.Conv2d(
        inside, outside, kernel, layer.number(3, 1), layer.number(4), layer.number(2, 1), groups, bias=biased
    )
    if conv.weight.numel() != count:
        raise ModelError(f"{reader.path}: layer {layer.name} has {count} weights, expected {conv.weight.numel()}")
    with torch.no_grad():
        conv.weight.copy_(reader.weights(count).view_as(conv.weight))
        if conv.bias is not None:
            conv.bias.copy_(reader.bias(outside))
    return conv
