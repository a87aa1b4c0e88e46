"""The finished images of a cell that takes long: a run that is killed goes on after them.

    ROOT/shards/KEY32-WHOSE16/START-STOP.safetensors    what was found for the images START to STOP

They are removed when the row is written.

An attack on more than 256 images leaves each part behind that took a few seconds. Parts are made small enough that each
takes about a minute. An outcome does not depend on the images beside it, so the row is the same.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import monotonic

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from siegebench.files import write_atomic
from siegebench.prepare import in_batches

Part = dict[str, Tensor]
MINUTE = 60.0  # seconds that a part should take
WORTH = 2.0  # seconds of work below which a part is not written
FIRST = 64  # images of the first part, which shows how long one takes
WHOLE = 256  # images up to which a cell is one part


def folder(root: Path, key: str, whose: str) -> Path:
    """Where the parts of a cell lie.

    Args:
        key: of the cell.
        whose: hash of what made them besides the key: source of the entries, weights, precision.
    """
    return root / "shards" / f"{key[:32]}-{whose[:16]}"


def remove(root: Path, key: str) -> None:
    """Remove all parts of a cell, also those of other code."""
    for path in (root / "shards").glob(f"{key[:32]}-*"):
        shutil.rmtree(path, ignore_errors=True)


def by_parts(part: Callable[[slice], Part], n: int, batch: int, at: Path) -> list[Part]:
    """`part` over slices of n images, in order; those that an earlier run left at this path are read instead.

    Args:
        part: the values of a slice; may be asked for any slice.
        batch: largest number of images of a slice.

    Raises:
        torch.OutOfMemoryError: when a single image does not fit.
    """
    if n <= min(batch, WHOLE):
        return in_batches(part, n, batch)
    out: list[Part] = []
    start, size = 0, min(batch, FIRST)
    for stop, found in _left(at):
        out.append(found)
        start = stop
    while start < n:
        stop, began = min(start + size, n), monotonic()
        pieces = in_batches(partial(_after, part, start), stop - start, stop - start)
        took = monotonic() - began
        size = max(1, min(batch, int((stop - start) * MINUTE / max(took, 1e-9))))
        out += pieces
        if took > WORTH and stop < n:
            whole = {name: torch.cat([p[name] for p in pieces]).contiguous().cpu() for name in pieces[0]}
            write_atomic(at / f"{start}-{stop}.safetensors", save(whole))
        start = stop
    return out


def _after(part: Callable[[slice], Part], start: int, at: slice) -> Part:
    return part(slice(start + at.start, start + at.stop))


def _left(at: Path) -> Iterator[tuple[int, Part]]:
    """(the first image after a part, the part), from image 0 as far as they follow on one another."""
    files = {int(path.name.partition("-")[0]): path for path in at.glob("*-*.safetensors") if path.name[0].isdigit()}
    start = 0
    while start in files:
        stop = int(files[start].stem.partition("-")[2])
        try:
            with safe_open(files[start], framework="pt") as file:
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):
            return  # torn: it is computed again
        yield stop, found
        start = stop
