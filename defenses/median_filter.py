"""Median filter: replace each pixel by the median of its neighbourhood before the network sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.draws import Draws
from siegebench.types import Count, Defense

from ._wrapped import Transformed


def median_filter(x: Tensor, k: int) -> Tensor:
    """Median of the k x k window around each pixel of x [n, C, H, W], in each channel; edges are mirrored.

    The values of `scipy.ndimage.median_filter`: for even k the window reaches further up and left, and the upper of the
    two middle values is taken. The gradient goes to the pixel that was selected.
    """
    rows, columns = (_mirrored(size, k, x.device) for size in x.shape[-2:])
    windows = x[..., rows, :][..., columns].unfold(2, k, 1).unfold(3, k, 1).flatten(-2)
    return windows.kthvalue(k * k // 2 + 1, dim=-1).values


def _mirrored(size: int, k: int, device: torch.device) -> Tensor:
    """Indices of 0..size-1 with a border for windows of k: c b a | a b c | c b a."""
    index = torch.arange(-(k // 2), size + (k - 1) // 2, device=device) % (2 * size)
    return torch.minimum(index, 2 * size - 1 - index)


@dataclass(frozen=True, kw_only=True)
class MedianFilter(Defense):
    """T(x) = the median of the k x k window around each pixel.

    Xu, Evans, Qi, "Feature Squeezing: Detecting Adversarial Examples in Deep Neural Networks", NDSS 2018.

    The filter removes changes of single pixels. It has a gradient almost everywhere: one that passes only through the
    selected pixels. Attackers use this gradient, or that of the identity; the declared attacks try both.

    Random: nothing.

    Differs from the paper: used alone, as preprocessing; the detector that compares squeezers is another entry.

    Attributes:
        window: k; the authors use 2 and 3.
    """

    adaptive: ClassVar[tuple[dict[str, Any], ...]] = (
        {"name": "pgd", "loss": "margin", "steps": 100},
        {"name": "bpda", "attack": {"name": "pgd", "loss": "margin", "steps": 100}},
        {"name": "bpda", "attack": {"name": "apgd", "loss": "ce"}},
    )

    window: Annotated[Count, Field(ge=2, le=15)] = 3

    def transform(self, x: Tensor, draws: Draws) -> Tensor:
        """Filtered images [n, C, H, W]; `draws` is not used."""
        return median_filter(x, self.window)

    def wrap(self, model: Classifier) -> Classifier:
        return Transformed(model, self.transform, smooth=True)
