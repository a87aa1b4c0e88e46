"""Reads a network in the format of ncnn: the layers that published networks needed so far, as a differentiable module.

A `.param` file lists the layers with their inputs, outputs and numbered parameters. The `.bin` file beside it has the
weights of convolutions and linear layers in the order of the list, as float16 or float32, and their biases as float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from siegebench.errors import ModelError

MAGIC = "7767517"
HALF, SINGLE = 0x01306B47, 0  # what stands before weights
CONVOLUTIONS = ("Convolution", "ConvolutionDepthWise")
WEIGHTED = (*CONVOLUTIONS, "InnerProduct")
KNOWN = (
    *WEIGHTED, "Input", "Split", "Swish", "HardSwish", "HardSigmoid", "BinaryOp", "UnaryOp", "Gemm", "Concat",
    "Pooling", "Interp", "Reshape", "Permute", "YoloV5Focus",
)  # fmt: skip
ARRAY = -23300  # a parameter with a smaller number is an array, of the number ARRAY - number
ACTIVATIONS = {0: "none", 1: "ReLU", 3: "clip", 4: "sigmoid"}


@dataclass(frozen=True)
class Layer:
    """A line of the `.param` file; `numbers` are its parameters by their number."""

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    numbers: dict[int, float]
    arrays: dict[int, tuple[float, ...]]

    def number(self, key: int, default: float = 0) -> int:
        return int(self.numbers.get(key, default))


class NcnnNet(nn.Module):
    """The network of a pair of files, without batch: ncnn's axes 0, 1, 2 are 1, 2, 3 here.

    Args:
        inputs, outputs: how many the network must have; an output is what no layer reads.

    Raises:
        ModelError: when a file is damaged, or has layers or values that are not known here.
    """

    def __init__(self, param: Path, weights: Path, inputs: int = 1, outputs: int = 1) -> None:
        super().__init__()
        self.layers = _layers(param)
        used = {name for layer in self.layers for name in layer.inputs}
        self.begins = tuple(name for layer in self.layers if layer.kind == "Input" for name in layer.outputs)
        self.ends = tuple(name for layer in self.layers for name in layer.outputs if name not in used)
        if (len(self.begins), len(self.ends)) != (inputs, outputs):
            raise ModelError(
                f"{param}: inputs {', '.join(self.begins)} and outputs {', '.join(self.ends)}; expected {inputs} and "
                f"{outputs}; is it of another network?"
            )
        self.weighted = nn.ModuleDict()
        reader = _Reader(weights)
        for layer in self.layers:
            if layer.kind in WEIGHTED:
                self.weighted[layer.name] = _weighted(layer, reader)
        reader.end()

    def forward(self, *given: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The output, or a tuple of several in the order of the file, for one tensor for each input."""
        held = dict(zip(self.begins, given, strict=True))
        for layer in self.layers:
            if layer.kind != "Input":
                held.update(dict.fromkeys(layer.outputs, self._run(layer, [held[name] for name in layer.inputs])))
        found = tuple(held[name] for name in self.ends)
        return found if len(found) > 1 else found[0]

    def _run(self, layer: Layer, given: list[Tensor]) -> Tensor:
        x = given[0]
        match layer.kind:
            case "Convolution" | "ConvolutionDepthWise" | "InnerProduct":
                return _activated(self.weighted[layer.name](x), layer)
            case "Swish":
                return F.silu(x)
            case "HardSwish":
                return x * _hard_sigmoid(x, layer)
            case "HardSigmoid":
                return _hard_sigmoid(x, layer)
            case "BinaryOp":
                y = given[1].view(*given[1].shape, *(1,) * (x.dim() - given[1].dim()))
                return x * y if layer.number(0) == 2 else x + y
            case "UnaryOp":
                return x.exp()
            case "Gemm":
                return x @ given[1]
            case "Concat":
                return torch.cat(given, dim=layer.number(0) + 1)
            case "Pooling" if layer.number(0) == 1:
                return x.mean(dim=(2, 3))
            case "Pooling":
                return F.max_pool2d(x, layer.number(1), layer.number(2, 1), layer.number(3))
            case "Interp":
                return F.interpolate(x, scale_factor=layer.numbers[1])
            case "Reshape":
                # from the innermost axis outwards; an axis that is not named does not exist
                shape = [layer.number(key) for key in (2, 1, 0) if key in layer.numbers]
                return x.reshape(len(x), *shape)
            case "Permute":
                return x.transpose(1, 2)
            case "YoloV5Focus":
                return torch.cat([x[:, :, down::2, right::2] for right in (0, 1) for down in (0, 1)], dim=1)
            case _:  # Split
                return x


def _hard_sigmoid(x: Tensor, layer: Layer) -> Tensor:
    return (layer.numbers.get(0, 0.2) * x + layer.numbers.get(1, 0.5)).clamp(0, 1)


def _activated(x: Tensor, layer: Layer) -> Tensor:
    match ACTIVATIONS[layer.number(9)]:
        case "ReLU":
            return x.relu()
        case "clip":
            return x.clamp(*layer.arrays[10])
        case "sigmoid":
            return x.sigmoid()
        case _:
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
    names, given = words[4 : 4 + inputs + outputs], words[4 + inputs + outputs :]
    numbers: dict[int, float] = {}
    arrays: dict[int, tuple[float, ...]] = {}
    for key, _, value in (word.partition("=") for word in given):
        if int(key) <= ARRAY:
            count, *values = value.split(",")
            arrays[ARRAY - int(key)] = tuple(map(float, values))
            if len(values) != int(count):
                raise ValueError(f"{key}={value}: {len(values)} numbers, expected {count}")
        else:
            numbers[int(key)] = float(value)
    return Layer(words[0], words[1], tuple(names[:inputs]), tuple(names[inputs:]), numbers, arrays)


def _unknown(layer: Layer) -> str:
    """What of a layer is not known here, for a message; empty if it is."""
    used: dict[str, dict[int, tuple[int, ...]]] = {
        "BinaryOp": {0: (0, 2)}, "UnaryOp": {0: (7,)}, "Pooling": {0: (0, 1)}, "Interp": {0: (1,)},
        "Permute": {0: (1,)}, "Gemm": {2: (0,), 3: (0,)},
    }  # fmt: skip
    if layer.kind not in KNOWN:
        return f"{layer.kind} is not known"
    if layer.kind in WEIGHTED and layer.number(9) not in ACTIVATIONS:
        return f"activation {layer.number(9)} is not known"
    if layer.kind in WEIGHTED and layer.number(9) == 3 and len(layer.arrays.get(10, ())) != 2:
        return "a clip without its two limits"
    if layer.kind == "Pooling" and layer.number(0) == 1 and not layer.number(4):
        return "an average that is not of the whole image is not known"
    only = used.get(layer.kind, {})
    wrong = [f"{key}={layer.number(key)}" for key, values in only.items() if layer.number(key) not in values]
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


def _weighted(layer: Layer, reader: _Reader) -> nn.Conv2d | nn.Linear:
    """A convolution or a linear layer, with its weights; without the initialisers, which would draw random numbers."""
    out: nn.Conv2d | nn.Linear
    outside = layer.number(0)
    if layer.kind == "InnerProduct":
        count, biased = layer.number(2), bool(layer.number(1))
        out = skip_init(nn.Linear, count // outside, outside, bias=biased)
    else:
        count, kernel, groups = layer.number(6), layer.number(1), layer.number(7, 1)
        inside = count // (outside * kernel**2) * groups
        out = skip_init(
            nn.Conv2d, inside, outside, kernel, layer.number(3, 1), layer.number(4), layer.number(2, 1), groups,
            bias=bool(layer.number(5)),
        )  # fmt: skip
    if out.weight.numel() != count:
        raise ModelError(f"{reader.path}: layer {layer.name} has {count} weights, expected {out.weight.numel()}")
    with torch.no_grad():
        out.weight.copy_(reader.weights(count).view_as(out.weight))
        if out.bias is not None:
            out.bias.copy_(reader.bias(outside))
    return out
