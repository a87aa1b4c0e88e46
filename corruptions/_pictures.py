"""Photographs that the user provides."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from siegebench.errors import DataError

DATA_VARIABLE = "SIEGEBENCH_DATA"


def find(folder: str | None, names: Sequence[str], default: str, source: str) -> list[Path]:
    """The files of these names in `folder`, or in the sub-folder `default` of the folder named by SIEGEBENCH_DATA.

    Raises:
        DataError: saying what is missing, where to get it, and where to put it.
    """
    data = os.environ.get(DATA_VARIABLE)
    local = Path(folder).expanduser() if folder else Path(data).expanduser() / default if data else None
    missing = [name for name in names if local is None or not (local / name).is_file()]
    if local is None or missing:
        where = f"{local} lacks {', '.join(missing)}" if local else "no folder is set"
        raise DataError(
            f"{default}: {where}; expected {', '.join(names)} from {source}. Set `folder: FOLDER` in the suite, or put "
            f"them into `{default}` in the folder that {DATA_VARIABLE} names"
        )
    return [local / name for name in names]


def digest(files: Sequence[Path]) -> str:
    """One sha256 of all the files, in order."""
    whole = hashlib.sha256()
    for file in files:
        whole.update(hashlib.sha256(file.read_bytes()).digest())
    return whole.hexdigest()


@lru_cache(maxsize=32)
def picture(file: Path, scale: float, least: tuple[int, int]) -> Tensor:
    """A photograph scaled (bilinear), but not below [H, W]: float32 [3, H', W'] in [0, 1].

    Raises:
        DataError: when it cannot be read.
    """
    try:
        with Image.open(file) as opened:
            pixels = np.array(opened.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{file}: not a readable image ({str(error)[:120]})") from None
    x = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    height, width = x.shape[-2:]
    scale = max(scale, least[0] / height, least[1] / width)
    if scale == 1:
        return x
    size = (max(least[0], round(height * scale)), max(least[1], round(width * scale)))
    return F.interpolate(x[None], size=size, mode="bilinear", align_corners=False)[0]


def crops(pictures: Sequence[Tensor], size: tuple[int, int], which: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """A crop of picture `which` [n] for each image, [n, 3, H, W].

    u, v [n] in [0, 1) give the position: 0 is the first possible row (column), 1 is past the last.
    """
    out = torch.empty(len(which), 3, *size, device=which.device)
    for k, pixels in enumerate(pictures):
        index = (which == k).nonzero().squeeze(1)
        positions = [max(1, pixels.shape[i + 1] - size[i]) for i in (0, 1)]
        top, left = ((fraction[index] * n).long() for fraction, n in zip((u, v), positions, strict=True))
        rows = top[:, None] + torch.arange(size[0], device=which.device)
        columns = left[:, None] + torch.arange(size[1], device=which.device)
        out[index] = pixels.to(which.device)[:, rows[:, :, None], columns[:, None, :]].transpose(0, 1)
    return out
