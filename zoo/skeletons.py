"""Recorded motions of people: the joints of a skeleton in every frame, as data of the kind `sequence`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from zipfile import BadZipFile

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench.data import PLANAR, SEQUENCE, ImageSet
from siegebench.errors import DataError
from siegebench.types import Count, DataSource

from ._files import DATA_VARIABLE, data_folder

Array = np.ndarray[Any, np.dtype[Any]]
LONG = 600  # frames; windows of longer recordings are twice as far apart
ROOM = 20.0  # units of the recordings in each direction from the hip; 1 unit is about 5.6 cm
SPREAD = 6.0  # width and height of the square that holds all joints of JHMDB, in its normalised coordinates


def _opened(name: str, file: str, arrays: tuple[str, ...]) -> Mapping[str, Array]:
    """The arrays of an npz file: a path, or a file in the folder named by SIEGEBENCH_DATA."""
    base = data_folder()
    tried = [Path(file).expanduser(), *([base / file] if base else [])]
    path = next((p for p in tried if p.is_file()), None)
    if path is None:
        raise DataError(
            f"{name}: there is no file {' or '.join(map(str, tried))}; write `file: PATH`, or set "
            f"{DATA_VARIABLE}=FOLDER in the environment"
        )
    try:
        with np.load(path, allow_pickle=False) as found:
            return {key: found[key] for key in arrays}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        told = f"expected the arrays {', '.join(arrays)}"
        raise DataError(f"{path}: not a file of {name}; {told} ({str(error)[:120]})") from None


@dataclass(frozen=True, kw_only=True)
class CMUMocap(DataSource):
    """Windows of motion capture, float32 [N, 3, frames, 28]: seven actions, whole recordings on one side of the split.

    Positions relative to the hip, x -> (x / 20 + 1) / 2, so that 0.005 is about 1.1 cm; y points up. 60 frames a
    second. Windows of one recording are near-copies of each other: they form a group. Nothing is random.

    The file has the arrays `positions` int16 [frames, 28, 3] in thousandths, `starts` (recording i is the rows
    starts[i]:starts[i + 1]), `labels`, `test` and `classes`.

    Attributes:
        file: a path, or a file in the folder named by SIEGEBENCH_DATA.
        frames: T, of each window.
        stride: frames from one window to the next; twice as many in recordings of more than 600 frames.
    """

    local: ClassVar[tuple[str, ...]] = ("file",)

    file: str = "extra/cmu_mocap_actions.npz"
    frames: Count = 32
    stride: Count = 8

    def load(self, split: str) -> ImageSet:
        if split not in self.known_splits():
            raise self.no_split("cmu_mocap", split)
        found = _opened("cmu_mocap", self.file, ("positions", "starts", "labels", "test", "classes"))
        starts, labels, test = (torch.from_numpy(found[k].copy()) for k in ("starts", "labels", "test"))
        x = torch.from_numpy(found["positions"].astype(np.float32)).permute(2, 0, 1) / 1000  # [3, frames, joints]
        stored = ((x / ROOM + 1) / 2).clamp(0, 1)
        first, owner = [], []
        for i in (test if split == "test" else ~test).nonzero().squeeze(1).tolist():
            begin, end = int(starts[i]), int(starts[i + 1])
            step = self.stride * (2 if end - begin > LONG else 1)
            at = torch.arange(begin, end - self.frames + 1, step)
            first.append(at)
            owner.append(torch.full_like(at, i))
        begins, group = torch.cat(first), torch.cat(owner)
        if not len(begins):
            raise DataError(f"cmu_mocap {split}: no recording has {self.frames} frames; set `frames` lower")
        windows = stored.unfold(1, self.frames, 1)[:, begins].permute(1, 0, 3, 2).contiguous()
        names = tuple(map(str, found["classes"]))
        return ImageSet(
            windows, labels[group].long(), begins, len(names), f"cmu_mocap {split}", groups=group, kind=SEQUENCE,
            classes=names,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class JHMDB(DataSource):
    """Joints of people in films, float32 [N, 2, frames, 15]: the first split of JHMDB, annotated by hand.

    Coordinates as published with DD-Net, relative to the person and divided by the person's size; x -> x / 6 + 1/2.
    Sequences of 15 to 40 frames are brought to `frames` by linear interpolation. Nothing is random.

    The file has the arrays `train_xy` float32 [frames of all sequences, 15, 2], `train_frames` (frames of each
    sequence), `train_label`, the same for `test`, and `names` of the classes.

    Attributes:
        file: a path, or a file in the folder named by SIEGEBENCH_DATA.
        frames: T, of each sequence.
    """

    local: ClassVar[tuple[str, ...]] = ("file",)

    file: str = "weights/ddnet-jhmdb/jhmdb_split1.npz"
    frames: Count = 32

    def load(self, split: str) -> ImageSet:
        if split not in self.known_splits():
            raise self.no_split("jhmdb", split)
        found = _opened("jhmdb", self.file, (f"{split}_xy", f"{split}_frames", f"{split}_label", "names"))
        x = torch.from_numpy(found[f"{split}_xy"].astype(np.float32)).permute(2, 1, 0)  # [2, joints, frames]
        lengths: list[int] = found[f"{split}_frames"].tolist()
        stored = torch.stack([self._brought(part) for part in x.split(lengths, dim=2)])
        labels, names = torch.from_numpy(found[f"{split}_label"].astype(np.int64)), tuple(map(str, found["names"]))
        return ImageSet(
            (stored / SPREAD + 0.5).clamp(0, 1), labels, torch.arange(len(stored)), len(names), f"jhmdb {split}",
            kind=PLANAR, classes=names,
        )  # fmt: skip

    def _brought(self, x: Tensor) -> Tensor:
        """[2, joints, any number of frames] to [2, frames, joints]."""
        return F.interpolate(x, self.frames, mode="linear", align_corners=True).transpose(1, 2)
