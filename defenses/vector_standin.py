"""Vectorisation, a stand-in: keep the smooth outlines of a drawing and fill them again before the network sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.draws import Draws
from siegebench.types import Defense, Positive, Share

from ._wrapped import Transformed

FINE = 4  # sub-pixels along a side when outlines are drawn


def without_specks(ink: Tensor, size: int, diagonal: bool) -> Tensor:
    """Masks [n, H, W] without their connected parts of at most `size` pixels.

    Args:
        diagonal: whether pixels that touch at a corner are connected.
    """
    n, height, width = ink.shape
    label = torch.arange(1, height * width + 1, device=ink.device).view(1, height, width).double() * ink
    while True:  # the largest number of a part spreads over it
        if diagonal:
            spread = F.max_pool2d(label[:, None], 3, 1, 1)[:, 0]
        else:
            columns = F.max_pool2d(label[:, None], (3, 1), 1, (1, 0))[:, 0]
            spread = torch.maximum(columns, F.max_pool2d(label[:, None], (1, 3), 1, (0, 1))[:, 0])
        spread = spread * ink
        if torch.equal(spread, label):
            break
        label = spread
    part = label.long().flatten(1)
    area = torch.zeros(n, height * width + 1, device=ink.device).scatter_add_(1, part, torch.ones_like(part).float())
    return ink & (area.gather(1, part) > size).view_as(ink)


def outlined(ink: Tensor, sigma: float, dtype: torch.dtype) -> Tensor:
    """The part of each pixel [n, H, W] inside the outline of a mask, smoothed with a Gaussian of sigma pixels."""
    fine = ink.repeat_interleave(FINE, 1).repeat_interleave(FINE, 2).to(dtype)[:, None]
    reach = max(1, round(3 * sigma * FINE))
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=dtype, device=ink.device) / (sigma * FINE)) ** 2)
    taps = taps / taps.sum()
    padded = F.pad(fine, (reach,) * 4, mode="replicate")
    smooth = F.conv2d(F.conv2d(padded, taps.view(1, 1, -1, 1)), taps.view(1, 1, 1, -1))
    return F.avg_pool2d((smooth > 0.5).to(dtype), FINE)[:, 0]


@dataclass(frozen=True, kw_only=True)
class VectorStandIn(Defense):
    """A stand-in for VectorDefense: the image becomes ink or paper, specks go, and smooth outlines are filled again.

    Kabilan, Morris, Nguyen, "VectorDefense: Vectorization as a Defense to Adversarial Examples", 2018.

    1. A pixel brighter than `threshold` is ink.
    2. Parts of the ink, and holes in it, of at most `speck` pixels are removed.
    3. The outline is smoothed, and each pixel becomes the part of it that lies inside.

    The output is nearly binary and has no gradient. An attacker treats the transform as the identity in the backward
    pass. Only for drawings such as digits: colour images become black and white.

    Random: nothing.

    Differs from the paper: the authors trace outlines with potrace as Bezier curves and draw them with Inkscape. Here
    no curve is fitted: the outline is the contour of the blurred mask on a grid four times as fine. Step 2 is that of
    potrace, with its specks and its choice of connecting ink at corners.

    Attributes:
        threshold: of ink.
        speck: the largest part that is removed, in pixels; the authors use 5.
        sigma: of the blur, in pixels.
    """

    differentiable: ClassVar[bool] = False
    adaptive: ClassVar[tuple[dict[str, Any], ...]] = (
        {"name": "bpda", "attack": {"name": "pgd", "loss": "margin", "steps": 100}},
        {"name": "bpda", "attack": {"name": "apgd", "loss": "ce"}},
        {"name": "square", "queries": 5000},
    )

    threshold: Share = 0.5
    speck: Annotated[int, Field(ge=0, strict=True)] = 5
    sigma: Positive = 0.7

    def transform(self, x: Tensor, draws: Draws) -> Tensor:
        """Redrawn images [n, C, H, W], all channels equal; `draws` is not used."""
        ink = without_specks(x.mean(dim=1) > self.threshold, self.speck, diagonal=True)
        ink = ~without_specks(~ink, self.speck, diagonal=False)
        return outlined(ink, self.sigma, x.dtype)[:, None].expand_as(x)

    def wrap(self, model: Classifier) -> Classifier:
        return Transformed(model, self.transform)
