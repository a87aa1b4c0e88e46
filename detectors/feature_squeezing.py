"""Feature squeezing: predictions that change when the input is coarsened are suspicious."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.data import Granted
from siegebench.draws import Draws
from siegebench.types import Class, Count, InputDetector, Positive, Scorer

Squeezer = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class FeatureSqueezing(InputDetector):
    """s(x) = max_j |p(x) - p(T_j(x))|_1 over squeezers T_j; p: softmax.

    Xu, Evans, Qi, "Feature squeezing: detecting adversarial examples in deep neural networks", NDSS 2018, arXiv
    1704.01155. The squeezers are fewer bits per channel, a median filter, and non-local means (Buades et al. 2005). The
    defaults are the paper's best set for CIFAR-10; for ImageNet it has 5 bits, the same median and NLM 11-3-4.

    Random: only the model. Cost: one forward pass per image and squeezer, and 169 shifts of the image for the default
    non-local means.

    Attributes:
        bits: grey levels are rounded to 2^bits; 0 for no such squeezer.
        median: side of the window of the median; 0 for none.
        search: side of the window in which non-local means looks for similar patches; 0 for none.
        patch: side of the patches.
        strength: how different patches may be, in grey levels of 255.

    Differs from the paper: non-local means compares patches of all channels together, in RGB; the paper's library
    converts to Lab first. For attacks, rounding and non-local means have the gradient of the identity (BPDA).
    """

    bits: Class = 5
    median: Class = 2
    search: Class = 13
    patch: Count = 3
    strength: Positive = 2.0

    def fit(self, model: Classifier, data: Granted, draws: Draws) -> Scorer:
        squeezers: list[Squeezer] = []
        if self.bits:
            squeezers.append(lambda x: (x * (2**self.bits - 1)).round() / (2**self.bits - 1))
        if self.median:
            squeezers.append(lambda x: median(x, self.median))
        if self.search:
            squeezers.append(lambda x: non_local_means(x, self.search, self.patch, self.strength / 255))

        def change(x: Tensor, squeeze: Squeezer) -> Tensor:
            if not (torch.is_grad_enabled() and x.requires_grad):
                return squeeze(x)
            with torch.no_grad():
                moved = squeeze(x) - x
            return x + moved

        def score(x: Tensor, draws: Draws) -> Tensor:
            def p(x: Tensor) -> Tensor:
                return model(x, draws if model.randomized else None).softmax(dim=1)

            own = p(x)
            far = [(own - p(change(x, squeeze))).abs().sum(dim=1) for squeeze in squeezers]
            return torch.stack([*far, torch.zeros_like(own[:, 0])]).amax(dim=0)

        return Scorer(score)


def median(x: Tensor, side: int) -> Tensor:
    """Median filter of each channel, edges replicated; of an even window the upper median, as in scipy."""
    before, after = side // 2, side - 1 - side // 2
    padded = F.pad(x, (before, after, before, after), mode="replicate")
    windows = padded.unfold(2, side, 1).unfold(3, side, 1).flatten(4)
    return windows.sort(dim=4).values[..., windows.shape[4] // 2]


def non_local_means(x: Tensor, search: int, patch: int, h: float) -> Tensor:
    """Each pixel becomes the mean of the pixels of its window, weighted by exp(-d^2 / h^2) of their patches."""
    reach, half = search // 2, patch // 2
    height, width = x.shape[2:]
    padded = F.pad(x, (reach,) * 4, mode="replicate")
    total, weights = torch.zeros_like(x), torch.zeros_like(x[:, :1])
    for i in range(2 * reach + 1):
        for j in range(2 * reach + 1):
            shifted = padded[:, :, i : i + height, j : j + width]
            apart = F.pad((shifted - x).square().mean(dim=1, keepdim=True), (half,) * 4, mode="replicate")
            weight = torch.exp(-F.avg_pool2d(apart, 2 * half + 1, 1) / h**2)
            total, weights = total + weight * shifted, weights + weight
    return total / weights
