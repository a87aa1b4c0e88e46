"""One decoded picture as 8-bit pixels: what happens to 16-bit, float, transparent and palette images."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from siegebench.errors import DataError

FULL = 65535  # full scale of 16-bit pixels
WHITE_IS_ZERO, PHOTOMETRIC = 0, 262  # of a TIFF file


def eight_bit(opened: Image.Image, name: str, channels: int) -> Image.Image:
    """The picture with 8 bits per pixel: RGB, or grey (ITU-R 601 luma) for one channel.

    8-bit images are read as torchvision and timm read them: transparency is ignored (the stored colours count), a
    palette and CMYK become RGB, of an animation or a file of several pages the first picture is used, and the
    orientation in EXIF data is not applied. 16-bit grey images are divided by 257 and rounded, so that 65535 becomes
    255; Pillow reads 16-bit colour images by their high byte. Float images are multiplied by 255 and rounded.

    Args:
        opened: as Pillow opened it.
        name: for messages.

    Raises:
        DataError: when a float image is not in [0, 1], or a 32-bit integer image not in 0..65535; when the values of a
            16-bit or 32-bit image are those of an 8-bit one, so that it would become black.
    """
    mode = "RGB" if channels == 3 else "L"
    if opened.mode == "F":
        return _grey(_fractions(np.asarray(opened), name), mode)
    if opened.mode.startswith("I"):
        tags: Any = getattr(opened, "tag_v2", {})
        inverted = tags.get(PHOTOMETRIC) == WHITE_IS_ZERO
        return _grey(_sixteen(np.asarray(opened), name, inverted), mode)
    if opened.mode == "P":  # transparent entries of a palette
        opened = opened.convert("RGBA" if "transparency" in opened.info else "RGB")
    return opened.convert("RGB").convert(mode) if opened.mode not in ("L", "LA", "1") else opened.convert(mode)


def _grey(values: np.ndarray[Any, Any], mode: str) -> Image.Image:
    return Image.fromarray(values.round().astype(np.uint8)).convert(mode)


def _fractions(values: np.ndarray[Any, Any], name: str) -> np.ndarray[Any, Any]:
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):  # also NaN
        raise DataError(
            f"{name}: a float image with values from {low:g} to {high:g}; expected [0, 1]. Divide by the full scale of "
            "the sensor, or save it as an 8-bit or 16-bit image"
        )
    return values.astype(np.float64) * 255


def _sixteen(values: np.ndarray[Any, Any], name: str, inverted: bool) -> np.ndarray[Any, Any]:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > FULL:
        raise DataError(
            f"{name}: an integer image with values from {low} to {high}; expected 16 bits, 0 to {FULL}. Scale it, and "
            "save it as an 8-bit or 16-bit image"
        )
    if 0 < high <= 255:
        raise DataError(
            f"{name}: an image with 16 or 32 bits and values from {low} to {high}; expected 0 to {FULL}. It would be "
            "black; save it with 8 bits"
        )
    scaled = values.astype(np.float64) * (255 / FULL)
    return 255 - scaled if inverted else scaled
