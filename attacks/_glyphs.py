"""Letters that look alike, by their pictures in a font."""

from __future__ import annotations

import importlib.util
import unicodedata
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from siegebench.errors import DataError

POINTS, SIDE, BASELINE = 22, 24, 20  # size of the font, pixels of a picture and its row under the letters
FONT = "DejaVuSans.ttf"  # a font with several thousand characters, under a free licence


def font_file() -> Path | None:
    """DejaVu Sans, from matplotlib if it is installed, which brings it along, or from this machine; None without."""
    spec = importlib.util.find_spec("matplotlib")
    if spec is not None and spec.origin is not None:
        path = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / FONT
        if path.is_file():
            return path
    try:
        return Path(str(ImageFont.truetype(FONT, POINTS).path))
    except OSError:
        return None


@cache
def pictures(last: int) -> tuple[np.ndarray, np.ndarray]:
    """(code points [n] below `last` that the font can draw, their pictures as vectors of length 1, [n, 576]).

    Left out are marks, blanks and control characters, and letters that are written from right to left.

    Raises:
        DataError: when the font is not found.
    """
    path = font_file()
    if path is None:
        raise DataError(f"no font {FONT} on this machine, which draws the letters: install DejaVu Sans, or matplotlib")
    font = ImageFont.truetype(str(path), POINTS, layout_engine=ImageFont.Layout.BASIC)
    missing = _drawn("\uffff", font)
    points, drawn = [], []
    for point in range(33, last):
        letter = chr(point)
        if unicodedata.category(letter)[0] in "MCZ" or unicodedata.bidirectional(letter) in ("R", "AL"):
            continue
        picture = _drawn(letter, font)
        if picture.any() and (picture != missing).any():
            points.append(point)
            drawn.append(picture)
    vectors = np.stack(drawn).astype(np.float32)
    return np.array(points), vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def alike(letter: str, last: int, count: int) -> list[tuple[int, float]]:
    """The characters beyond ASCII whose pictures have the largest cosines with that of a letter, and these cosines."""
    points, vectors = pictures(last)
    cosine = (vectors @ vectors[np.searchsorted(points, ord(letter))]).round(4)
    best = [k for k in np.lexsort((points, -cosine)) if points[k] >= 128][:count]
    return [(int(points[k]), float(cosine[k])) for k in best]


def _drawn(letter: str, font: ImageFont.FreeTypeFont) -> np.ndarray:
    picture = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(picture).text((SIDE / 2, BASELINE), letter, fill=255, font=font, anchor="ms")
    return np.asarray(picture).ravel()
