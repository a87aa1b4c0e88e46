"""Writes images as PNG files. Needs no torch."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

import numpy as np


def write(folder: Path, images: np.ndarray[Any, Any], ids: np.ndarray[Any, Any]) -> None:
    """A folder with one 8-bit file for each image, `ID.png`; it is complete or absent.

    Args:
        images: [n, C, H, W] in [0, 1], C of 1 or 3.
        ids: names of the files, [n].
    """
    from PIL import Image

    grey = (np.clip(images, 0, 1) * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)
    temporary = folder.parent / f".{folder.name}.{secrets.token_hex(4)}.tmp"
    temporary.mkdir(parents=True)
    for name, image in zip(ids.tolist(), grey, strict=True):
        Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(temporary / f"{name}.png")
    os.replace(temporary, folder)
