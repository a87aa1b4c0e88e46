"""Rows: many images that are read a few at a time: from memory, from a mapped file, or by decoding them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from siegebench.errors import DataError

CHUNK = 2**24  # bytes that are copied, hashed or stamped at a time


class Reader(Protocol):
    """Images that are decoded when they are read.

    Attributes:
        shape: (N, C, H, W).
        dtype: of what `read` returns.
    """

    @property
    def shape(self) -> torch.Size: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def __len__(self) -> int: ...

    def read(self, rows: Tensor) -> Tensor:
        """The images [n, C, H, W] of some rows, int64 [n], in that order."""


class Rows:
    """Some of the images of one or more parts, in any order. Selecting and replacing rows copies no image.

    Args:
        parts: tensors [n, C, H, W] or readers of images of one size, counted one behind the other.
        index: int64 [N], rows of the parts; all of them in order when left out.

    Raises:
        DataError: when the images of two parts differ in size.
    """

    def __init__(self, *parts: Tensor | Reader, index: Tensor | None = None) -> None:
        self.parts, self.index = parts, index
        self._ends = list(accumulate(map(len, parts)))
        for part in parts[1:] if not self.encoded else ():  # the shape of a reader may cost a decoded image
            if part.shape[1:] != parts[0].shape[1:]:
                raise _sizes_differ(parts[0].shape, part.shape)

    def __len__(self) -> int:
        return self._ends[-1] if self.index is None else len(self.index)

    @property
    def shape(self) -> torch.Size:
        """(N, C, H, W)."""
        return torch.Size([len(self), *self.parts[0].shape[1:]])

    @property
    def dtype(self) -> torch.dtype:
        return self.parts[0].dtype

    @property
    def encoded(self) -> bool:
        """Whether some of the images are decoded when they are read."""
        return not all(isinstance(part, Tensor) for part in self.parts)

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """The images of some rows; a copy, except for a slice of one whole tensor."""
        first = self.parts[0]
        if len(self.parts) == 1 and self.index is None and isinstance(first, Tensor):
            return first[index]
        rows = self._rows(index)
        if len(self.parts) == 1:
            return _read(first, rows)
        out = torch.empty(len(rows), *self.shape[1:], dtype=self.dtype)
        of = torch.bucketize(rows, torch.tensor(self._ends), right=True)
        for k in of.unique().tolist():
            part, start = self.parts[k], self._ends[k] - len(self.parts[k])
            places = (of == k).nonzero().squeeze(1)
            # a tensor in pieces, so that no second copy of all its rows exists; a reader decodes best at once
            for at in places.split(self._at_once() if isinstance(part, Tensor) else len(places)):
                found = _read(part, rows[at] - start)
                if found.shape[1:] != out.shape[1:]:
                    raise _sizes_differ(out.shape, found.shape)
                out[at] = found
        return out

    def select(self, index: Tensor | slice) -> Rows:
        """Some of the rows, in the order of the index."""
        return Rows(*self.parts, index=self._rows(index))

    def replaced(self, rows: Tensor, images: Tensor) -> Rows:
        """The same rows with other images at some of them."""
        index = self._rows(slice(None)).clone()
        index[rows] = torch.arange(len(images)) + self._ends[-1]
        return Rows(*self.parts, images, index=index)

    def in_memory(self) -> Rows:
        """The same rows without readers, and without what no row asks for; whole parts stay where they are."""
        if self.index is not None:
            return Rows(self[:])
        return Rows(*(part if isinstance(part, Tensor) else part.read(torch.arange(len(part))) for part in self.parts))

    def pieces(self) -> Iterator[Tensor]:
        """All rows in order, a few at a time."""
        step = self._at_once()
        for start in range(0, len(self), step):
            yield self[start : start + step]

    def _at_once(self) -> int:
        return max(1, CHUNK // max(1, self.shape[1:].numel() * self.dtype.itemsize))

    def _rows(self, index: Tensor | slice) -> Tensor:
        rows = torch.arange(self._ends[-1]) if self.index is None else self.index
        return rows[index].contiguous()


def _read(part: Tensor | Reader, rows: Tensor) -> Tensor:
    return part[rows] if isinstance(part, Tensor) else part.read(rows)


def _sizes_differ(one: torch.Size, other: torch.Size) -> DataError:
    return DataError(f"images of {one[3]}x{one[2]} and {other[3]}x{other[2]} pixels; resize them to one size")
