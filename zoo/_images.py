"""Decodes encoded images to uint8 tensors: all of them, or only the requested rows."""

from __future__ import annotations

import io
import json
import os
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from siegebench.data import GREY, IMAGE, Kind
from siegebench.errors import DataError

from ._pictures import eight_bit

Fit = Literal["crop", "stretch"]
Channels = Literal[1, 3]
KINDS: dict[int, Kind] = {1: GREY, 3: IMAGE}  # by channels
Blobs = Iterable[tuple[str, bytes]]  # (name for messages, encoded bytes)


def decode(
    blobs: Blobs, size: int | None = None, fit: Fit = "crop", channels: Channels = 3, cut: int = 0
) -> Iterator[Tensor]:
    """Decode to images, each uint8 [channels, H, W], one at a time.

    Args:
        size: side of the square that every image is resized to (bilinear); None keeps the size of the images.
        fit: `crop` scales the shorter side and takes the centre, `stretch` scales both sides.
        channels: 3 for RGB, 1 for grey; see `eight_bit` for 16-bit, float and transparent images.
        cut: pixels removed at each border, before the image is resized.

    Raises:
        DataError: naming the image that cannot be read, or of which nothing is left.
    """
    for name, blob in blobs:
        try:
            with Image.open(io.BytesIO(blob)) as opened:
                image = eight_bit(opened, name, channels)
        except UnidentifiedImageError:
            why = "Pillow does not know its format" if blob else "an empty file"
            raise DataError(f"{name}: not a readable image ({why}); replace it, or convert it to PNG") from None
        except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
            raise DataError(f"{name}: not a readable image ({str(error)[:120]})") from None
        if cut:
            image = inside(image, cut, name)
        if size is not None:
            image = resized(image, size, fit)
        height, width = image.size[::-1]
        yield torch.from_numpy(np.array(image).reshape(height, width, channels)).permute(2, 0, 1)


def inside(image: Image.Image, cut: int, name: str) -> Image.Image:
    """The image without `cut` pixels at each border."""
    width, height = image.size
    if 2 * cut >= min(width, height):
        raise DataError(f"{name}: an image of {width}x{height} pixels has nothing left without {cut} at each border")
    return image.crop((cut, cut, width - cut, height - cut))


def resized(image: Image.Image, size: int, fit: Fit) -> Image.Image:
    """The image, resized to a square."""
    if image.size == (size, size):
        return image
    box: tuple[float, float, float, float] | None = None
    if fit == "crop":
        width, height = image.size
        edge = min(width, height)
        left, top = (width - edge) / 2, (height - edge) / 2
        box = (left, top, left + edge, top + edge)
    return image.resize((size, size), Image.Resampling.BILINEAR, box=box)


def alike(images: Iterable[Tensor], where: str) -> Iterator[Tensor]:
    """The same images, checked to have one size.

    Raises:
        DataError: when there are none, or their sizes differ.
    """
    first: torch.Size | None = None
    for image in images:
        first = first or image.shape
        if image.shape != first:
            raise DataError(
                f"{where}: images of {first[2]}x{first[1]} and {image.shape[2]}x{image.shape[1]} pixels; "
                "resize them to one size with `size: N`"
            )
        yield image
    if first is None:
        raise DataError(f"{where}: contains no images")


def with_channels(images: Tensor, channels: Channels) -> Tensor:
    """Images uint8 [n, 1 or 3, H, W] with another number of channels: copies of the grey one, or ITU-R 601 luma."""
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1).contiguous()
    out = torch.empty(len(images), 1, *images.shape[2:], dtype=torch.uint8)
    for piece, into in zip(images.split(1024), out.split(1024), strict=True):
        red, green, blue = piece.int().unbind(1)
        into[:, 0] = (red * 19595 + green * 38470 + blue * 7471 + 2**15) >> 16  # as Pillow computes it
    return out


def stacked(images: Iterable[Tensor], count: int, where: str) -> Tensor:
    """Images of one size as one tensor, uint8 [count, C, H, W], which is filled image by image.

    Raises:
        DataError: when there are none, or their sizes differ.
    """
    out = torch.empty(0, dtype=torch.uint8)
    for i, image in enumerate(alike(images, where)):
        if i == 0:
            out = torch.empty(count, *image.shape, dtype=torch.uint8)
        out[i] = image
    return out


def write(path: Path, images: Iterable[Tensor], count: int, where: str) -> None:
    """Write images of one size as the tensor `images` of a safetensors file, one image in memory at a time.

    The file is either complete or absent.

    Raises:
        DataError: when there are none, or their sizes differ.
        OSError: when the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            for i, image in enumerate(alike(images, where)):
                if i == 0:  # https://github.com/huggingface/safetensors: length of the header, header, data
                    shape = [count, *image.shape]
                    entry = {"dtype": "U8", "shape": shape, "data_offsets": [0, int(np.prod(shape, dtype=np.int64))]}
                    header = json.dumps({"images": entry}).encode()
                    header += b" " * (-len(header) % 8)
                    file.write(struct.pack("<Q", len(header)) + header)
                file.write(image.contiguous().numpy().data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@dataclass(frozen=True, eq=False)
class Encoded:
    """Images that are decoded when they are read (see siegebench.rows.Reader).

    Attributes:
        count: number of images.
        blobs: function that returns the encoded images of some rows, given in ascending order without repeats.
        where: for error messages.
        size, fit, channels, cut: see decode.
    """

    count: int
    blobs: Callable[[Sequence[int]], Blobs]
    where: str
    size: int | None = None
    fit: Fit = "crop"
    channels: Channels = 3
    cut: int = 0

    dtype = torch.uint8

    def __len__(self) -> int:
        return self.count

    @cached_property
    def shape(self) -> torch.Size:
        """(N, C, H, W); without `size`, H and W are those of the first image."""
        if self.size is not None:
            return torch.Size([self.count, self.channels, self.size, self.size])
        (first,) = self.decoded([0])
        return torch.Size([self.count, *first.shape])

    def decoded(self, rows: Sequence[int]) -> Iterator[Tensor]:
        """The images of some rows, in ascending order."""
        return decode(self.blobs(rows), self.size, self.fit, self.channels, self.cut)

    def read(self, rows: Tensor) -> Tensor:
        """The images of some rows, in the given order; rows may repeat."""
        ascending, inverse = torch.unique(rows, return_inverse=True)
        images = stacked(self.decoded(ascending.tolist()), len(ascending), self.where)
        return images if torch.equal(ascending, rows) else images[inverse]
