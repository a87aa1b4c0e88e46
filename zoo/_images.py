"""Encoded images to uint8 tensors."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from siegebench.errors import DataError

Fit = Literal["crop", "stretch"]


def decode(blobs: Iterable[tuple[str, bytes]], size: int | None = None, fit: Fit = "crop") -> list[Tensor]:
    """RGB images, each uint8 [3, H, W].

    Args:
        blobs: (name for messages, encoded bytes).
        size: edge of the square that every image is brought to (bilinear); None leaves images as they are.
        fit: `crop` scales the shorter edge and takes the centre, `stretch` scales both edges.

    Raises:
        DataError: naming the image that cannot be read.
    """
    out = []
    for name, blob in blobs:
        try:
            with Image.open(io.BytesIO(blob)) as opened:
                image = opened.convert("RGB")
        except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
            raise DataError(f"{name}: not a readable image ({str(error)[:120]})") from None
        if size is not None:
            image = resized(image, size, fit)
        out.append(torch.from_numpy(np.array(image)).permute(2, 0, 1))
    return out


def resized(image: Image.Image, size: int, fit: Fit) -> Image.Image:
    """The image as a square."""
    if image.size == (size, size):
        return image
    box: tuple[float, float, float, float] | None = None
    if fit == "crop":
        width, height = image.size
        edge = min(width, height)
        left, top = (width - edge) / 2, (height - edge) / 2
        box = (left, top, left + edge, top + edge)
    return image.resize((size, size), Image.Resampling.BILINEAR, box=box)


def stacked(images: list[Tensor], where: str) -> Tensor:
    """uint8 [N, 3, H, W] of images of one size.

    Raises:
        DataError: when there are none, or their sizes differ.
    """
    if not images:
        raise DataError(f"{where}: holds no images")
    first = images[0].shape
    for image in images:
        if image.shape != first:
            raise DataError(
                f"{where}: images of {first[2]}x{first[1]} and {image.shape[2]}x{image.shape[1]} pixels; "
                "bring them to one size with `size: N`"
            )
    return torch.stack(images)
