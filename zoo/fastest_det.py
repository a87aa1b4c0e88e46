"""FastestDet, a small object detector for COCO, with its published weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siegebench.checkpoints import load_into, source_of
from siegebench.classifier import ModelCard
from siegebench.data import Size
from siegebench.object_detector import Found, ObjectDetector
from siegebench.types import Count
from siegebench.weights import weights_hash

from ._coco import CLASSES, CocoDetector, resized

STRIDE = 16  # pixels of the network's input for one cell of its output


def _conv(inside: int, outside: int, kernel: int = 1, stride: int = 1, *, deep: bool = False) -> list[nn.Module]:
    """A convolution, depthwise if `deep`, and its batch norm."""
    groups = inside if deep else 1
    layer = nn.Conv2d(inside, outside, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [layer, nn.BatchNorm2d(outside)]


class _Shuffle(nn.Module):
    """Block of ShuffleNetV2. With stride 1, every second channel passes unchanged."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.stride, middle = stride, outside // 2
        given = inside if stride == 2 else inside // 2
        self.branch_main = nn.Sequential(
            *_conv(given, middle), nn.ReLU(), *_conv(middle, middle, 3, stride, deep=True),
            *_conv(middle, outside - given), nn.ReLU(),
        )  # fmt: skip
        if stride == 2:
            self.branch_proj = nn.Sequential(*_conv(inside, inside, 3, 2, deep=True), *_conv(inside, inside), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 2:
            return torch.cat((self.branch_proj(x), self.branch_main(x)), 1)
        return torch.cat((x[:, ::2], self.branch_main(x[:, 1::2])), 1)


class _Named(nn.Module):
    """A Sequential under a name of its own, as the checkpoint has it."""

    def __init__(self, name: str, *layers: nn.Module) -> None:
        super().__init__()
        self.add_module(name, nn.Sequential(*layers))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = next(self.children())(x)
        return out


class _Backbone(nn.Module):
    """ShuffleNetV2 with 48, 96 and 192 channels at the strides 8, 16 and 32."""

    def __init__(self) -> None:
        super().__init__()
        self.first_conv = nn.Sequential(*_conv(3, 24, 3, 2), nn.ReLU())
        widths = (24, 48, 96, 192)
        for i, repeats in enumerate((4, 8, 4)):
            inside, outside = widths[i], widths[i + 1]
            rest = [_Shuffle(outside, outside, 1) for _ in range(repeats - 1)]
            setattr(self, f"stage{i + 2}", nn.Sequential(_Shuffle(inside, outside, 2), *rest))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.max_pool2d(self.first_conv(x), 3, 2, 1)
        maps = []
        for stage in (2, 3, 4):
            x = self.get_submodule(f"stage{stage}")(x)
            maps.append(x)
        return maps


class _SPP(nn.Module):
    """One, two and three depthwise 5x5 convolutions in parallel, for receptive fields of several sizes."""

    def __init__(self, inside: int, width: int) -> None:
        super().__init__()
        self.Conv1x1 = _Named("conv1x1", *_conv(inside, width), nn.ReLU())
        for n in (1, 2, 3):
            deep = [layer for _ in range(n) for layer in (*_conv(width, width, 5, deep=True), nn.ReLU())]
            setattr(self, f"S{n}", nn.Sequential(*deep))
        self.output = nn.Sequential(*_conv(3 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.Conv1x1(x)
        spread = [self.get_submodule(f"S{n}")(x) for n in (1, 2, 3)]
        return F.relu(x + self.output(torch.cat(spread, 1)))


class _Head(nn.Module):
    """Objectness, box and classes of each cell, each from a depthwise 5x5 convolution."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.conv1x1 = _Named("conv1x1", *_conv(width, width), nn.ReLU())
        for name, outside in (("obj", 1), ("reg", 4), ("cls", classes)):
            layers = _Named("conv5x5", *_conv(width, width, 5, deep=True), nn.ReLU(), *_conv(width, outside))
            setattr(self, f"{name}_layers", layers)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1x1(x)
        return torch.cat([self.get_submodule(f"{name}_layers")(x) for name in ("obj", "reg", "cls")], 1)


class FastestDetNet(nn.Module):
    """BGR images [n, 3, H, W] in [0, 1] to [n, 5 + classes, H/16, W/16]: logit of objectness, box, class logits."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.backbone = _Backbone()
        self.SPP = _SPP(48 + 96 + 192, 96)
        self.detect_head = _Head(96, classes)

    def forward(self, x: Tensor) -> Tensor:
        large, middle, small = self.backbone(x)
        pooled, grown = F.avg_pool2d(large, 3, 2, 1), F.interpolate(small, scale_factor=2.0)
        out: Tensor = self.detect_head(self.SPP(torch.cat((pooled, middle, grown), 1)))
        return out


class FastestDetector(ObjectDetector):
    """The network on images of any size; boxes of the vehicle classes."""

    def __init__(self, net: FastestDetNet, side: int, vehicles: tuple[int, ...], card: ModelCard) -> None:
        super().__init__()
        self.net, self.side, self.vehicles, self.card = net, side, vehicles, card

    def find(self, x: Tensor) -> Found:
        out = self.net(resized(x, self.side, self.side).flip(1))
        rows, columns = torch.meshgrid(*(torch.arange(k, device=x.device) for k in out.shape[2:]), indexing="ij")
        centre = (out[:, 1:3].tanh() + torch.stack([columns, rows])) / len(rows)
        size = out[:, 3:5].sigmoid()
        corners = torch.cat([centre - size / 2, centre + size / 2], dim=1).flatten(2).transpose(1, 2)
        boxes = corners * x.new_tensor([x.shape[3], x.shape[2]]).repeat(2)
        # objectness^0.6 class^0.4, in logarithms: the gradient of a power is infinite at 0
        classes = out[:, 5:].log_softmax(dim=1)[:, self.vehicles]
        scores = (0.6 * F.logsigmoid(out[:, :1]) + 0.4 * classes).exp().amax(dim=1)
        return Found(boxes, scores.flatten(1))


@dataclass(frozen=True, kw_only=True)
class FastestDet(CocoDetector):
    """FastestDet (dog-qiuqiu/FastestDet), 0.24 M weights: ShuffleNetV2, depthwise heads, a grid of 22 x 22 cells.

    The score of a cell is objectness^0.6 times class probability^0.4, as in the published code; each cell has one box.
    Images are resized to a square, with a filter against aliasing, which the published code does not have. Its authors
    state 25.3 % AP at IoU 0.5 on COCO.

    Nothing is random.

    Attributes:
        side: pixels to which images are resized, a multiple of 32; the weights are for 352.
    """

    side: Count = 352

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.side % 32:
            raise ValueError(f"side: expected a multiple of 32, found {self.side}")

    def detector(self, *, size: Size) -> FastestDetector:
        net, path = FastestDetNet(), self.weights()
        fitted = load_into(net, path, normalised=((0.0,) * 3, (1.0,) * 3))
        card = ModelCard(
            name="fastest_det", architecture="FastestDet (ShuffleNetV2 24-48-96-192)", dataset="COCO",
            source=source_of(path, fitted), weights=weights_hash(net.state_dict()),
            preprocessing={"input_size": self.side, "channels": "BGR"}, licence="BSD-3-Clause",
        )  # fmt: skip
        return FastestDetector(net, self.side, self.vehicles, card).eval()
