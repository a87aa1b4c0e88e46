"""YOLOX-nano, an object detector for COCO, with published weights in the format of ncnn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench.classifier import ModelCard
from siegebench.data import Size
from siegebench.errors import ModelError
from siegebench.ncnn import NcnnNet
from siegebench.object_detector import Found, ObjectDetector
from siegebench.weights import weights_hash

from ._coco import CLASSES, CocoDetector, resized
from ._files import sha256

SIDE, GREY, STRIDES = 416, 114 / 255, (8, 16, 32)


class YoloXDetector(ObjectDetector):
    """The network on images of any size; boxes of the vehicle classes."""

    def __init__(self, net: NcnnNet, vehicles: tuple[int, ...], card: ModelCard) -> None:
        super().__init__()
        self.net, self.vehicles, self.card = net, vehicles, card

    def find(self, x: Tensor) -> Found:
        height, width = x.shape[2:]
        scale = SIDE / max(height, width)
        inside = resized(x, max(1, int(height * scale)), max(1, int(width * scale)))
        square = F.pad(inside, (0, SIDE - inside.shape[3], 0, SIDE - inside.shape[2]), value=GREY)
        out = self.net(square.flip(1) * 255)  # [n, cells, 85]
        cells, stride = self._cells(x)
        centre = (out[..., :2] + cells) * stride
        size = out[..., 2:4].clamp(max=8).exp() * stride
        boxes = torch.cat([centre - size / 2, centre + size / 2], dim=2) / scale
        return Found(boxes, out[..., 4] * out[..., 5:][..., self.vehicles].amax(dim=2))

    @staticmethod
    def _cells(like: Tensor) -> tuple[Tensor, Tensor]:
        """Column and row of each cell, [cells, 2], and its stride, [cells, 1]."""
        places, strides = [], []
        for stride in STRIDES:
            side = torch.arange(SIDE // stride, dtype=like.dtype, device=like.device)
            rows, columns = torch.meshgrid(side, side, indexing="ij")
            places.append(torch.stack([columns, rows], dim=2).flatten(0, 1))
            strides.append(torch.full_like(places[-1][:, :1], stride))
        return torch.cat(places), torch.cat(strides)


@dataclass(frozen=True, kw_only=True)
class YoloXNano(CocoDetector):
    """YOLOX-nano (Ge, Liu, Wang, Li, Sun, 2021), 0.9 M weights: anchor-free, strides 8, 16 and 32.

    The score of a box is objectness times class probability. Images are put into the upper left corner of a grey square
    of 416 pixels, as in the published code, and resized with a filter against aliasing, which it does not have. The
    weights were converted to ncnn, in float16, by others; the authors of YOLOX state 25.8 % AP on COCO for theirs.
    `checkpoint` is the .param file; the .bin file with the weights lies beside it.

    Nothing is random.
    """

    def identity(self) -> dict[str, Any]:
        param = self.weights()
        return {"sha256": [sha256(param), sha256(param.with_suffix(".bin"))]}

    def detector(self, *, size: Size) -> YoloXDetector:
        path = self.weights()
        net = NcnnNet(path, path.with_suffix(".bin"))
        self._check(net)
        card = ModelCard(
            name="yolox_nano", architecture="YOLOX-nano", dataset="COCO", source=path.name,
            weights=weights_hash(net.state_dict()), licence="Apache-2.0",
            preprocessing={"input_size": SIDE, "channels": "BGR", "scale": 255},
        )  # fmt: skip
        return YoloXDetector(net, self.vehicles, card).eval()

    def _check(self, net: NcnnNet) -> None:
        cells = sum((SIDE // stride) ** 2 for stride in STRIDES)
        with torch.no_grad():
            found = tuple(net(torch.zeros(1, 3, SIDE, SIDE)).shape)
        if found != (1, cells, 5 + CLASSES):
            raise ModelError(f"{self.checkpoint}: returns {found}; YOLOX for COCO returns {(1, cells, 5 + CLASSES)}")
