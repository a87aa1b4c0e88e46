"""Picture files of rare kinds, written by hand where Pillow does not write them."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

Array = np.ndarray[Any, Any]


def saved(image: Image.Image | Array, form: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(out, form, **options)
    return out.getvalue()


def png16(pixels: Array) -> bytes:
    """A PNG with 16 bits per channel: grey [H, W], or colour [H, W, 3]."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = pixels.shape[:2]
    head = struct.pack(">IIBBBBB", width, height, 16, 2 if pixels.ndim == 3 else 0, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    data = zlib.compress(rows)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def tiff(pixels: Array, white_is_zero: bool = False) -> bytes:
    """A grey TIFF in the byte order and number format of the array [H, W]."""
    form = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    order = ">" if pixels.dtype.byteorder == ">" else "<"
    height, width = pixels.shape
    data, bits = pixels.tobytes(), 8 * pixels.dtype.itemsize
    tags = [
        (256, width), (257, height), (258, bits), (259, 1), (262, 0 if white_is_zero else 1), (273, 10 + 12 * 10 + 4),
        (277, 1), (278, height), (279, len(data)), (339, form),
    ]  # fmt: skip
    body = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags)
    mark = b"MM" if order == ">" else b"II"
    return mark + struct.pack(f"{order}HIH", 42, 8, len(tags)) + body + bytes(4) + data
