"""A trigger given as a picture: pasted through a mask, or added to the image."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench.draws import Draws
from siegebench.errors import DataError
from siegebench.types import BackdoorAttack


@dataclass(frozen=True, kw_only=True)
class Picture(BackdoorAttack):
    """`paste`: x' = x (1 - m) + p m. `add`: x' = x + p. Both are clipped to [0, 1]; p is the picture, m the mask.

    For triggers of published networks, and for triggers of your own. A picture of another size than the images is
    resized (bilinear; the mask to the nearest pixel).

    Random: only the choice of the poisoned images.

    Attributes:
        picture: a PNG or NPY file, a path or below `weights/` in the folder named by SIEGEBENCH_DATA: 8-bit, or
            floating-point in [-1, 1]; [H, W], [H, W, C] or [C, H, W].
        mask: a PNG or NPY file with the mask, in the same layouts. Without one, `paste` covers the pixels of the
            picture that are not black.
        mode: how the picture is applied.
    """

    local: ClassVar[tuple[str, ...]] = ("picture", "mask")

    picture: str
    mask: str | None = None
    mode: Literal["paste", "add"] = "paste"

    def trigger(self, x: Tensor, draws: Draws) -> Tensor:
        p = _resized(_read(self.picture), x, "bilinear")
        if self.mode == "add":
            return (x + p).clamp(0, 1)
        m = (p != 0).any(dim=0, keepdim=True).to(x) if self.mask is None else _resized(_read(self.mask), x, "nearest")
        return (x * (1 - m) + p * m).clamp(0, 1)

    def identity(self) -> dict[str, Any]:
        from hashlib import sha256

        files = {"picture": self.picture, "mask": self.mask}
        return {k: sha256(_path(v).read_bytes()).hexdigest() for k, v in files.items() if v is not None}


def _path(file: str) -> Path:
    places = [Path(file).expanduser()]
    if folder := os.environ.get("SIEGEBENCH_DATA"):
        places.append(Path(folder).expanduser() / "weights" / file)
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        raise DataError(
            f"{file}: there is no such file, here or below weights/ in the folder named by SIEGEBENCH_DATA; expected a "
            "PNG or NPY file with the picture of a trigger"
        )
    return found


def _read(file: str) -> Tensor:
    """The picture as float32 [C, H, W]."""
    path = _path(file)
    if path.suffix == ".npy":
        array = np.load(path, allow_pickle=False)
    else:
        from PIL import Image

        with Image.open(path) as opened:
            array = np.array(opened.convert("L" if opened.mode in ("1", "L") else "RGB"))
    values = torch.from_numpy(np.ascontiguousarray(array)).float()
    if array.dtype == np.uint8:
        values = values / 255
    values = values[..., None] if values.ndim == 2 else values
    if values.ndim == 3 and values.shape[0] not in (1, 3):
        values = values.permute(2, 0, 1)
    if values.ndim != 3 or values.shape[0] not in (1, 3) or not bool((values.abs() <= 1).all()):
        raise DataError(
            f"{file}: {array.dtype} {tuple(array.shape)}; expected 8-bit or floating-point values in [-1, 1], [H, W], "
            "[H, W, C] or [C, H, W] with one or three channels"
        )
    return values


def _resized(picture: Tensor, x: Tensor, mode: str) -> Tensor:
    """The picture in the size, on the device and in the type of images x."""
    if picture.shape[1:] != x.shape[2:]:
        smooth = {"align_corners": False} if mode == "bilinear" else {}
        picture = F.interpolate(picture[None], x.shape[2:], mode=mode, **smooth)[0]
    return picture.to(x)
