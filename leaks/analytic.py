"""The input of a linear layer with bias, computed from its gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from siegebench.classifier import Classifier, Network
from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from siegebench.types import Leak, Recovered, Shared

from ._matching import labels_of


@dataclass(frozen=True, kw_only=True)
class Analytic(Leak):
    """x = (dL/dW_i) / (dL/db_i) for the unit i with the largest |dL/db_i| of a first linear layer with bias.

    Phong, Aono, Hayashi, Wang, Moriai, "Privacy-Preserving Deep Learning via Additively Homomorphic Encryption", IEEE
    Transactions on Information Forensics and Security 2018; Geiping, Bauermeister, Droege, Moeller, NeurIPS 2020,
    proposition 3.1. dL/dW_i = (dL/db_i) x for a single image, so that x is exact, in one division. With n images the n
    units with the largest |dL/db_i| each give an average of the images, weighted by how much each of them changes the
    unit; it is a single image if only one activates the unit.

    It shows that some networks leak without any optimisation. The label is computed from the gradient of the last
    layer.

    Nothing is random.

    Differs from the paper: the unit with the largest gradient is used, where noise has the smallest effect.
    """

    def run(self, shared: Shared, draws: Draws) -> Recovered:
        name = first_linear(shared.model, shared.shape)
        weight, bias = shared.released[f"{name}.weight"], shared.released[f"{name}.bias"]
        units = bias.abs().topk(shared.n, dim=1).indices  # [m, n]
        rows = weight.gather(1, units[..., None].expand(-1, -1, weight.shape[2]))
        below = bias.gather(1, units)[..., None]
        x = torch.where(below == 0, 0.0, rows / torch.where(below == 0, 1.0, below))
        x = x.view(len(shared), shared.n, *shared.shape)
        kind = shared.model.kind
        return Recovered(_pixels(shared.model, x).clamp(kind.low, kind.high), labels_of(shared))


def first_linear(model: Classifier, shape: tuple[int, int, int]) -> str:
    """The name of the first layer with weights, if it is linear, has a bias, and takes the pixels of the image.

    Raises:
        NotApplicable: when it is another one; names it.
    """
    for name, module in model.named_modules():
        if not module._parameters:
            continue
        pixels = shape[0] * shape[1] * shape[2]
        if isinstance(module, nn.Linear) and module.bias is not None and module.in_features == pixels:
            return name
        raise NotApplicable(
            f"the first layer of {model.card.name} is {type(module).__name__}; the image can be read off a linear "
            f"layer with a bias and {pixels} inputs alone"
        )
    raise NotApplicable(f"{model.card.name} has no layer with weights")


def _pixels(model: Classifier, x: Tensor) -> Tensor:
    """Undo the normalisation of a network."""
    return x * model.std + model.mean if isinstance(model, Network) else x
