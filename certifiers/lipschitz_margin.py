"""Lipschitz margin: a prediction is stable if its margin is larger than a Lipschitz bound lets it change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from siegebench import ops
from siegebench.classifier import Classifier, Network
from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from siegebench.threat import Norm
from siegebench.traced import behind
from siegebench.types import Certificate, Certifier, Count

SLACK = 1e-5  # of margins in float32, as a fraction of the largest logit
ROOT2 = 2.0**0.5
ONE = (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.Hardtanh, nn.Flatten, nn.Identity, nn.Dropout)
BatchNorm = (nn.BatchNorm1d, nn.BatchNorm2d)


@dataclass(frozen=True, kw_only=True)
class LipschitzMargin(Certifier):
    """R = (z_c - max_{j != c} z_j) / (sqrt2 L) in L2, where the logits z are L-Lipschitz in the image.

    Tsuzuku, Sato, Sugiyama, "Lipschitz-Margin Training: Scalable Certification of Perturbation Invariance for Deep
    Neural Networks", NeurIPS 2018.

    If a model proves a radius by itself, this radius is used (`Classifier.certified_radius`: `lbdn`,
    `robust_prototypes`). For any other network that is a chain of layers, L is the product of their spectral norms.
    That is a control: on networks that were not trained for it, it certifies next to nothing.

    Spectral norms are exact for linear layers (singular values in float64). That of a convolution is bounded by
    sqrt(|K|_1 |K|_inf): the largest sums of absolute weights that meet at one input and at one output.

    Nothing is random. Cost: one forward pass per image, and one decomposition of each linear layer.

    Differs from the paper: only the certificate, not its training; the paper bounds convolutions by power iteration.

    Attributes:
        widest: linear layers with more inputs and more outputs than this are bounded by their Frobenius norm.
    """

    norms: ClassVar[frozenset[Norm]] = frozenset({"l2"})
    adaptive: ClassVar[tuple[dict[str, Any], ...]] = ({"name": "pgd", "loss": "margin", "steps": 50, "restarts": 5},)

    widest: Count = 4096

    def certify(self, model: Classifier, x: Tensor, norm: Norm, radii: Sequence[float], draws: Draws) -> Certificate:
        z = model(x)
        prediction = z.argmax(dim=1)
        own = behind(model).certified_radius(x, norm)
        if own is None:
            margin = -ops.margin(z, prediction) - SLACK * z.abs().amax(dim=1)
            own = margin.double() / (ROOT2 * constant(behind(model), x[:1], self.widest))
        return Certificate(prediction, torch.stack([own > r for r in radii]))


def constant(model: Classifier, x: Tensor, widest: int) -> float:
    """A bound of the L2 Lipschitz constant of the logits of a chain of layers.

    Args:
        x: an image [1, C, H, W]; only its size is used.
        widest: as in `LipschitzMargin`.

    Raises:
        NotApplicable: for another network; names the part that cannot be bounded.
    """
    if not isinstance(model, Network) or model.size is not None:
        told = "resizes its images" if isinstance(model, Network) else f"is a {type(model).__name__}"
        raise NotApplicable(
            f"lipschitz_margin: {model.card.name} {told}; it bounds chains of layers, and models with certified_radius"
        )
    bound, h = float(1 / model.std.double().min()), model._normalised(x)
    for layer in _chain(model.net):
        bound *= _bound(layer, widest) * _spread(layer, h)
        h = layer(h)
    return bound


def _chain(net: nn.Module) -> list[nn.Module]:
    """The layers of nested nn.Sequential, in order."""
    return [leaf for part in net for leaf in _chain(part)] if isinstance(net, nn.Sequential) else [net]


def _bound(layer: nn.Module, widest: int) -> float:
    if isinstance(layer, ONE):
        return 1.0
    if isinstance(layer, nn.Linear):
        w = layer.weight.double()
        return float(w.norm() if min(w.shape) > widest else torch.linalg.matrix_norm(w, 2))
    if isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros":
        return _convolution(layer)
    if isinstance(layer, BatchNorm) and layer.running_var is not None:
        gain = (layer.running_var.double() + layer.eps).rsqrt()
        return float((gain if layer.weight is None else gain * layer.weight.double().abs()).max())
    if isinstance(layer, (nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d)):
        return 1.0  # of each window; see _spread
    raise NotApplicable(f"lipschitz_margin cannot bound a layer of type {type(layer).__name__}")


def _convolution(layer: nn.Conv2d) -> float:
    """sqrt(|K|_1 |K|_inf), for every stride, padding and size of the image."""
    k = layer.weight.double().abs()
    outputs = k.sum(dim=(1, 2, 3)).max()
    groups = k.unflatten(0, (layer.groups, -1))
    inputs = groups.sum(dim=(1, 3, 4)).max()
    return float((outputs * inputs).sqrt())


def _spread(layer: nn.Module, h: Tensor) -> float:
    """The root of the number of windows that a pixel may be in; 1 for a layer without windows.

    Raises:
        NotApplicable: when it has a divisor of its own, or makes the image larger.
    """
    if isinstance(layer, nn.AdaptiveAvgPool2d):
        out = _pair(layer.output_size)
        if any(o is not None and o > size for o, size in zip(out, h.shape[-2:], strict=True)):
            raise NotApplicable(f"lipschitz_margin cannot bound AdaptiveAvgPool2d that makes {tuple(h.shape)} larger")
        return 2.0  # at most two windows of each side overlap
    if isinstance(layer, (nn.AvgPool2d, nn.MaxPool2d)):
        if getattr(layer, "divisor_override", None) is not None or _pair(getattr(layer, "dilation", 1)) != (1, 1):
            raise NotApplicable("lipschitz_margin cannot bound pooling with divisor_override or dilation")
        kernel, stride = _pair(layer.kernel_size), _pair(layer.stride or layer.kernel_size)
        return float(prod(-(-k // s) for k, s in zip(kernel, stride, strict=True)) ** 0.5)
    return 1.0


def _pair(value: Any) -> tuple[Any, Any]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
