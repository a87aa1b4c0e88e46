"""JPEGCompression: lossy compression."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from siegebench.draws import Draws
from siegebench.types import Corruption

from ._severity import constants


@dataclass(frozen=True, kw_only=True)
class JPEGCompression(Corruption):
    """Encode as JPEG of quality q with Pillow (4:2:0, standard tables), and decode.

    Hendrycks, Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019.
    Pixels are rounded to 8 bits first. The codec runs on the CPU, image by image, and passes no gradient.
    Nothing is random. Cost: about 0.1 ms for an image of 48x48 pixels.

    Differs from the paper: none known.
    """

    group: ClassVar[str] = "digital"

    def run(self, x: Tensor, severity: int, draws: Draws) -> Tensor:
        q, _ = constants(x, severity, (25, 18, 15, 10, 7), (80, 65, 58, 50, 40))
        pixels = (x.detach() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        out = np.empty_like(pixels)
        for image, into in zip(pixels, out, strict=True):  # the codec takes one at a time
            into[...] = _decoded(image, q)
        return torch.from_numpy(out).permute(0, 3, 1, 2).to(x) / 255


def _decoded(image: np.ndarray, quality: int) -> np.ndarray:
    """uint8 [H, W, C] through encoder and decoder; one channel is a grey JPEG."""
    file = io.BytesIO()
    Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file)).reshape(image.shape)
