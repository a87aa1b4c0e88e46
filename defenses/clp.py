"""CLP: remove the channels with an unusually large Lipschitz bound, without any image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from siegebench.classifier import Classifier
from siegebench.data import Granted
from siegebench.draws import Draws
from siegebench.types import Defense, Positive

from ._repair import conv_norm_pairs, sample


@dataclass(frozen=True, kw_only=True)
class ChannelLipschitznessPruning(Defense):
    """Prune channel k of a layer if its bound c_k > mean(c) + u std(c), over the channels of that layer.

    Zheng, Tang, Li, Liu, "Data-free Backdoor Removal based on Channel Lipschitzness", ECCV 2022.

    For a convolution W followed by a batch norm with scale gamma and variance v,

        c_k = sigma_max(|gamma_k| / sqrt(v_k + eta) W_k),    W_k as a matrix [inputs, kernel positions]

    A channel that reacts strongly to a small trigger has a large bound. Pruned channels get scale and bias 0. No
    weight is trained, and no pixel is used: only the size of the clean images matters, for a forward pass that finds
    out which batch norm reads which convolution. Layers are paired in this way, so the first convolution of a
    pre-activation block has a pair and the others may have none.

    Nothing is random.

    Cost: one forward pass and a singular value for each channel.

    Differs from the paper: the batch norm's own eta is added to its variance; the authors' code adds none. It pairs
    each batch norm with the convolution before it in the list of modules.

    Attributes:
        u: number of standard deviations. The authors use 3; smaller networks need less.
    """

    trains: ClassVar[bool] = True
    tracks: ClassVar[tuple[str, ...]] = ("backdoor",)

    u: Positive = 3.0

    def quick(self) -> Self:
        return replace(self, u=0.5)  # an untrained network has no outliers

    def wrap(self, model: Classifier) -> Classifier:
        return model

    @torch.no_grad()
    def fit(self, defended: Classifier, data: Granted, draws: Draws) -> None:
        pairs = conv_norm_pairs(defended, sample(defended, data.clean))
        for norm, pruned in [(norm, self.outliers(bounds(conv, norm))) for conv, norm in pairs]:
            norm.weight[pruned] = 0
            norm.bias[pruned] = 0

    def outliers(self, c: Tensor) -> Tensor:
        """Which of the channels [C] of a layer are pruned, bool [C]; none of a single channel."""
        if len(c) < 2:
            return torch.zeros_like(c, dtype=torch.bool)
        return c > c.mean() + self.u * c.std()


def bounds(conv: nn.Conv2d, norm: _BatchNorm) -> Tensor:
    """Lipschitz bound c [C] of each channel of a convolution and its batch norm."""
    spectral: Tensor = torch.linalg.matrix_norm(conv.weight.flatten(2).float(), ord=2)
    scale = norm.weight.abs()
    if norm.running_var is not None:
        scale = scale / (norm.running_var + norm.eps).sqrt()
    return spectral * scale
