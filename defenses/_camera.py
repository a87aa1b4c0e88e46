"""A camera: from RGB images back to its RAW recording, and a classical, differentiable pipeline from RAW to RGB.

Brooks, Mildenhall, Xue, Chen, Sharlet, Barron, "Unprocessing Images for Learned Raw Denoising", CVPR 2019. A recording
[n, 4, H, W] has the planes R, Gr, Gb, B of a Bayer mosaic of 2H x 2W, and stands for an RGB image [n, 3, H, W].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench.draws import Draws

SRGB_TO_XYZ = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))
XYZ_TO_CAMERA = (  # of four cameras
    ((1.0234, -0.2969, -0.2266), (-0.5625, 1.6328, -0.0469), (-0.0703, 0.2188, 0.6406)),
    ((0.4913, -0.0541, -0.0202), (-0.613, 1.3513, 0.2906), (-0.1564, 0.2151, 0.7183)),
    ((0.838, -0.263, -0.0639), (-0.2887, 1.0725, 0.2496), (-0.0627, 0.1427, 0.5438)),
    ((0.6596, -0.2079, -0.0562), (-0.4782, 1.3016, 0.1933), (-0.097, 0.1581, 0.5181)),
)
# Malvar, He, Cutler, "High-quality linear interpolation for demosaicing of Bayer-patterned color images", ICASSP 2004
GREEN = ((0, 0, -1, 0, 0), (0, 0, 2, 0, 0), (-1, 2, 4, 2, -1), (0, 0, 2, 0, 0), (0, 0, -1, 0, 0))
ALONG = ((0, 0, 0.5, 0, 0), (0, -1, 0, -1, 0), (-1, 4, 5, 4, -1), (0, -1, 0, -1, 0), (0, 0, 0.5, 0, 0))
ACROSS = tuple(zip(*ALONG, strict=True))
OPPOSITE = ((0, 0, -1.5, 0, 0), (0, 2, 0, 2, 0), (-1.5, 0, 6, 0, -1.5), (0, 2, 0, 2, 0), (0, 0, -1.5, 0, 0))
# of the mosaic and the four filtered ones (green, along, across, opposite): which to take at R, Gr, Gb, B
TAKEN = {"red": (0, 2, 3, 4), "green": (1, 0, 0, 1), "blue": (4, 3, 2, 0)}
DARK = 1e-8


@dataclass(frozen=True)
class Camera:
    """Colours and exposure of n recordings.

    Attributes:
        colours: matrices from linear sRGB to the camera's colours, [n, 3, 3].
        gains: white balance and brightness of red, green and blue in the pipeline from RAW to RGB, [n, 3].
    """

    colours: Tensor
    gains: Tensor

    @classmethod
    def drawn(cls, draws: Draws, dtype: torch.dtype) -> Camera:
        """A camera for each image: a mixture of four, with the gains of Brooks et al."""
        weights = draws.uniform((4,), purpose="colours").to(dtype)
        # 1 / N(0.8, 0.1); the bound is four deviations away
        bright = 1 / (0.8 + 0.1 * draws.normal(purpose="brightness").to(dtype)).clamp(min=0.4)
        red = 1.9 + 0.5 * draws.uniform(purpose="red").to(dtype)
        blue = 1.5 + 0.4 * draws.uniform(purpose="blue").to(dtype)
        return cls(_colours(weights), torch.stack([red * bright, bright, blue * bright], dim=1))

    @classmethod
    def mean(cls, like: Tensor) -> Camera:
        """The mean of the cameras, for a batch of one that is broadcast."""
        gains = like.new_tensor([[2.15 * 1.25, 1.25, 1.7 * 1.25]])
        return cls(_colours(like.new_ones(1, 4)), gains)


def _colours(weights: Tensor) -> Tensor:
    """Mixtures of the four cameras; grey stays grey."""
    mixed = torch.einsum("nk,kij->nij", weights / weights.sum(1, keepdim=True), weights.new_tensor(XYZ_TO_CAMERA))
    matrix = mixed @ weights.new_tensor(SRGB_TO_XYZ)
    return matrix / matrix.sum(dim=2, keepdim=True)


def unprocess(y: Tensor, camera: Camera) -> Tensor:
    """The recording [n, 4, H, W] of RGB images y [n, 3, H, W] in [0, 1], enlarged twice so that no pixel is lost."""
    v = F.interpolate(y, scale_factor=2.0, mode="bicubic", align_corners=False).clamp(0, 1)
    v = 0.5 - ((1 - 2 * v).asin() / 3).sin()  # the inverse of 3 v^2 - 2 v^3
    v = v.clamp(min=DARK) ** 2.2
    v = torch.einsum("nij,njhw->nihw", camera.colours, v)
    g = (1 / camera.gains)[:, :, None, None]
    bright = ((v.mean(dim=1, keepdim=True) - 0.9).clamp(min=0) / 0.1).square()
    v = (v * torch.maximum(bright + (1 - bright) * g, g)).clamp(0, 1)  # highlights stay white
    return torch.stack([v[:, 0, ::2, ::2], v[:, 1, ::2, 1::2], v[:, 1, 1::2, ::2], v[:, 2, 1::2, 1::2]], dim=1)


def develop(raw: Tensor, camera: Camera) -> Tensor:
    """RGB images [n, 3, H, W] of recordings [n, 4, H, W]: gains, demosaicing, colours, gamma, tone curve, 2x2 means."""
    gains = camera.gains[:, [0, 1, 1, 2], None, None]
    v = _demosaiced(raw * gains)
    v = torch.einsum("nij,njphw->niphw", torch.linalg.inv(camera.colours).expand(len(v), 3, 3), v)
    v = v.clamp(DARK, 1) ** (1 / 2.2)
    return (3 * v.square() - 2 * v**3).mean(dim=2)


def _demosaiced(raw: Tensor) -> Tensor:
    """All colours at every pixel of the mosaic, [n, 3, 4, H, W]: colour, position in the 2x2 cell, cell."""
    mosaic = F.pixel_shuffle(raw, 2)
    kernels = raw.new_tensor((GREEN, ALONG, ACROSS, OPPOSITE))[:, None] / 8
    every = torch.cat([mosaic, F.conv2d(F.pad(mosaic, (2, 2, 2, 2), mode="reflect"), kernels)], dim=1)
    cells = F.pixel_unshuffle(every, 2).unflatten(1, (5, 4))
    return torch.stack([torch.stack([cells[:, k, p] for p, k in enumerate(t)], dim=1) for t in TAKEN.values()], dim=1)
