"""Saved: adversarial images that were made before, or by another program."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from siegebench import ops
from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.errors import DataError, NotApplicable
from siegebench.oracle import Oracle
from siegebench.threat import NORMS, TOLERANCE, Access, Norm, ThreatModel
from siegebench.types import Attack

EXPECTED = "expected tensors images [n, C, H, W] and ids [n], and labels [n] if there are any"


@dataclass(frozen=True)
class Stored:
    """The content of a file, by increasing id.

    Attributes:
        images: uint8 or float [n, C, H, W].
        ids: int64 [n], of the images in their dataset.
        labels: int64 [n], true labels; None if the file has none.
        data: digest of the images that were attacked; empty if the file does not say.
    """

    images: Tensor
    ids: Tensor
    labels: Tensor | None
    data: str = ""

    def rows(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """(which of the ids are stored, bool [m]; their rows)"""
        at = torch.searchsorted(self.ids, ids).clamp(max=len(self.ids) - 1)
        there = self.ids[at] == ids
        return there, at[there]


@dataclass(frozen=True, kw_only=True)
class Saved(Attack):
    """Returns the stored image of each sample, or the clean image where there is none within eps.

    The file is a `.safetensors` or `.npz` file. It holds `images` (float in [0, 1] or uint8; [n, C, H, W], in `.npz`
    also [n, H, W, C]), `ids` (int64 [n], the index of each image in the published order of its split) and, better,
    `labels` (int64 [n], true labels, which are compared with those of the data). Or it is a folder of images named by
    their id, such as `12.png`. From Python, with `siegebench.attack`, the ids are the positions in the batch.

    Nothing is random. Cost: no passes. The victim needs no gradients, so that this runs on every board of images; the
    passes and queries of the attack that made the images are not known.

    Attributes:
        file: the file or folder, required. Its content, and not its name, enters the key of a row.
    """

    file: str = ""

    needs: ClassVar[Access] = "none"
    norms: ClassVar[tuple[Norm, ...]] = NORMS
    restricted: ClassVar[bool] = True
    local: ClassVar[tuple[str, ...]] = ("file",)

    def stored(self) -> Stored:
        """The content of the file.

        Raises:
            NotApplicable: without a file.
            DataError: when it is missing or not such a file.
        """
        if not self.file:
            raise NotApplicable("needs the parameter file: a .safetensors or .npz file, or a folder of images")
        path = Path(self.file).expanduser()
        if not path.exists():
            raise DataError(f"{path}: no such file or folder of stored images")
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        return _read(path, tuple((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files))

    def identity(self) -> dict[str, Any]:
        stored, h = self.stored(), hashlib.sha256()
        for part in (stored.images, stored.ids):
            h.update(f"{part.dtype} {tuple(part.shape)}".encode())
            h.update(part.contiguous().numpy().tobytes())
        return {"sha256": h.hexdigest()}

    def refusal(self, threat: ThreatModel, images: ImageSet | None = None) -> str:
        if images is None:
            return ""
        stored = self.stored()
        there, rows = stored.rows(images.ids)
        if not len(rows):
            return f"{self.file} has none of the {len(images)} images of {images.name} (by id)"
        if stored.images.shape[1:] != images.shape:
            found, wanted = tuple(stored.images.shape[1:]), images.shape
            return f"{self.file} has images {found}, those of {images.name} are {wanted}"
        if stored.labels is not None:
            return self._other(stored.ids[rows], stored.labels[rows], images.labels[there])
        if stored.data and stored.data != images.digest:
            return f"{self.file} was made from other images than {images.name}, and has no labels to compare"
        return ""

    def _other(self, ids: Tensor, stored: Tensor, true: Tensor) -> str:
        differ = (stored != true).nonzero().flatten()
        if not len(differ):
            return ""
        first = int(differ[0])
        return (
            f"{self.file} was made from other images: {len(differ)} of {len(ids)} labels differ; image "
            f"{int(ids[first])} has label {int(stored[first])} there and {int(true[first])} in the data"
        )

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
        stored = self.stored()
        there, rows = stored.rows(draws.ids.cpu())
        if stored.images.shape[1:] != x.shape[1:]:
            raise DataError(f"{self.file}: images {tuple(stored.images.shape[1:])}, expected {tuple(x.shape[1:])}")
        if stored.labels is not None and (reason := self._other(stored.ids[rows], stored.labels[rows], y.cpu()[there])):
            raise DataError(reason)
        images, x_adv = stored.images[rows].to(x.device), x.clone()
        x_adv[there.to(x.device)] = (
            images.to(x.dtype) if images.is_floating_point() else oracle.kind.load(images, x.dtype)
        )
        inside = threat.size(x_adv, x) <= threat.limit
        inside &= oracle.kind.inside(x_adv, TOLERANCE)  # false for NaN
        return torch.where(ops.over(inside, x), x_adv.clamp(oracle.kind.low, oracle.kind.high), x)


@lru_cache(maxsize=8)
def _read(path: Path, stamp: tuple[tuple[str, int, int], ...]) -> Stored:
    """The content of a file or folder; `stamp` changes when the files do."""
    try:
        tensors, data = _folder(path) if path.is_dir() else _file(path)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{path}: cannot be read ({str(error).splitlines()[0][:200]}); {EXPECTED}") from None
    if not {"images", "ids"} <= set(tensors):
        raise DataError(f"{path}: found {', '.join(sorted(tensors)) or 'nothing'}; {EXPECTED}")
    images, ids, labels = tensors["images"], tensors["ids"], tensors.get("labels")
    if images.dim() != 4 or (images.dtype != torch.uint8 and not images.is_floating_point()):
        raise DataError(
            f"{path}: images are {images.dtype} {tuple(images.shape)}, expected uint8 or float [n, C, H, W]"
        )
    if path.suffix == ".npz" and images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        images = images.permute(0, 3, 1, 2).contiguous()
    for name, part in (("ids", ids), ("labels", labels)):
        if part is not None and (part.is_floating_point() or part.shape != images.shape[:1]):
            found = f"{part.dtype} {tuple(part.shape)}"
            raise DataError(f"{path}: {name} are {found}, expected {len(images)} integers")
    if len(ids) == 0 or len(ids.unique()) != len(ids):
        raise DataError(f"{path}: {'no images' if len(ids) == 0 else 'an id appears twice'}; {EXPECTED}")
    order = ids.argsort()
    return Stored(images[order], ids[order].long(), None if labels is None else labels[order].long(), data)


def _file(path: Path) -> tuple[dict[str, Tensor], str]:
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            data = (file.metadata() or {}).get("digest", "")
        return safetensors.torch.load_file(path), data
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return {k: torch.from_numpy(arrays[k]) for k in ("images", "ids", "labels") if k in arrays}, ""
    raise DataError(f"{path}: expected .safetensors, .npz or a folder of images named by their id")


def _folder(path: Path) -> tuple[dict[str, Tensor], str]:
    files = {int(f.stem): f for f in path.iterdir() if f.stem.isascii() and f.stem.isdigit()}
    if not files:
        raise DataError(f"{path}: no images named by their id, such as 12.png")
    images = [torch.from_numpy(np.array(Image.open(f).convert("RGB"))).permute(2, 0, 1) for f in files.values()]
    return {"images": torch.stack(images), "ids": torch.tensor(list(files))}, ""
