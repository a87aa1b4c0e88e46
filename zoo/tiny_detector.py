"""A tiny object detector that is trained on rendered scenes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from siegebench.classifier import ModelCard, Wrapped
from siegebench.data import ImageSet, Size
from siegebench.draws import Draws
from siegebench.object_detector import Found, ObjectDetector
from siegebench.render.compose import compose
from siegebench.train import Recipe, train
from siegebench.types import Count, ObjectDetectorSource, SceneSource, Share

STRIDE = 8  # pixels from one cell to the next
CENTRAL = 0.25  # cells nearer to the middle of a box than this share of its sides learn the box
PRIOR = -4.6  # first logit of objectness: one cell in a hundred
PERIOD = 2.0  # metres, of a random pattern
AT_ONCE = 32  # scenes
RECIPE = Recipe(epochs=8, batch=16, lr=3e-3, weight_decay=1e-4, augment="none")


def _block(inside: int, outside: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outside), nn.ReLU())


def _answers(inside: int) -> nn.Conv2d:
    """Objectness and four sides; of objectness little at first."""
    conv = nn.Conv2d(inside, 5, 1)
    assert conv.bias is not None
    with torch.no_grad():
        conv.bias[0] = PRIOR
    return conv


class TinyDetectorModel(ObjectDetector):
    """Six convolutions to stride 8, a level of context with stride 16, one box in each cell."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.card = ModelCard("tiny_detector", architecture=f"6 convolutions, width {width}, stride {STRIDE}")
        w = width
        shapes = ((3, w, 2), (w, w, 1), (w, 2 * w, 2), (2 * w, 2 * w, 1), (2 * w, 4 * w, 2), (4 * w, 4 * w, 1))
        self.body = nn.Sequential(*(_block(*shape) for shape in shapes))
        self.context = nn.Sequential(_block(4 * w, 4 * w, 2), _block(4 * w, 4 * w, 1))
        self.head = nn.Sequential(_block(4 * w, 4 * w, 1), _answers(4 * w))

    def raw(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(logit of objectness [n, K], boxes [n, K, 4]) of all cells."""
        fine = self.body((x - 0.5) / 0.25)
        wide = F.interpolate(self.context(fine), fine.shape[2:], mode="nearest")
        out = self.head(fine + wide)
        sides = F.softplus(out[:, 1:]).flatten(2).transpose(1, 2) * STRIDE  # to the left, top, right, bottom
        middle = _middles(out)
        return out[:, 0].flatten(1), torch.cat([middle - sides[..., :2], middle + sides[..., 2:]], dim=2)

    def find(self, x: Tensor) -> Found:
        objects, boxes = self.raw(x)
        return Found(boxes, objects.sigmoid())

    def fresh(self, seed: int) -> TinyDetectorModel:
        with torch.random.fork_rng(devices=[]):  # initialisers draw from the global generator
            torch.manual_seed(seed)
            return TinyDetectorModel(self.width).to(next(self.parameters()).device).eval()


def _middles(out: Tensor) -> Tensor:
    """The middle of each cell in pixels, [K, 2]."""
    rows, columns = (torch.arange(k, dtype=out.dtype, device=out.device) for k in out.shape[2:])
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return (torch.stack([x, y], dim=2).flatten(0, 1) + 0.5) * STRIDE


class _Raw(Wrapped):
    """The detector as the training loop calls it: objectness and boxes of all cells, [n, K, 5]."""

    inner: TinyDetectorModel

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        objects, boxes = self.inner.raw(x)
        return torch.cat([objects[..., None], boxes], dim=2)


def loss(out: Tensor, truth: Tensor, size: tuple[int, int]) -> Tensor:
    """Focal loss of objectness in all cells, and GIoU loss of the boxes in cells near the middle of the true one.

    Args:
        out: objectness and boxes of all cells, [n, K, 5].
        truth: the true box of each image, [n, 4]; zeros without a vehicle.
        size: height and width of the images.
    """
    cells = [-(-side // STRIDE) for side in size]
    middle = _middles(out.new_zeros(1, 1, *cells))
    near = (middle - (truth[:, None, :2] + truth[:, None, 2:]) / 2).abs()
    reach = (truth[:, 2:] - truth[:, :2])[:, None] * CENTRAL
    mine = (near < reach.clamp(min=STRIDE / 2)).all(dim=2) & (reach > 0).all(dim=2)
    count = mine.sum().clamp(min=1)
    objects = sigmoid_focal_loss(out[..., 0], mine.to(out.dtype), reduction="sum") / count
    boxes = generalized_box_iou_loss(out[..., 1:][mine], truth[:, None].expand_as(out[..., 1:])[mine], reduction="sum")
    return objects + boxes / count


@dataclass(frozen=True, kw_only=True)
class TinyDetector(ObjectDetectorSource):
    """A small anchor-free detector of vehicles, trained on rendered scenes: the victim for tests and first trials.

    Six convolutions with batch normalisation to stride 8, one more level with stride 16 for context. Each cell answers
    with objectness and the distances to the four sides of the box. It is trained with the focal loss (Lin et al., ICCV
    2017) and the GIoU loss (Rezatofighi et al., CVPR 2019). On 100 test scenes of `vehicle_scenes.small` its average
    precision at IoU 0.5 was 0.999 with grey, 0.997 with flat and 1.000 with random paint (one seed). It was trained
    without photographs of vehicles and does not work on them.

    Random: the initial weights, the paint of the training scenes, the order of the images; the harness seeds them.

    Attributes:
        width: channels of the first layers; later ones have two and four times as many.
        paints: images of each training scene, each with another paint; every second one is mirrored.
        patterned: share of these whose paint is a random pattern instead of one colour.
        recipe: for training.
    """

    width: Count = 16
    paints: Count = 2
    patterned: Share = 0.25
    recipe: Recipe = RECIPE

    def detector(self, *, size: Size) -> TinyDetectorModel:
        return TinyDetectorModel(self.width).eval()

    def learn(self, detector: ObjectDetector, scenes: SceneSource, ids: Sequence[int], seed: int) -> None:
        assert isinstance(detector, TinyDetectorModel)
        data, boxes = self.images(scenes, ids, seed)
        boxes = boxes.to(next(detector.parameters()).device)

        def value(out: Tensor, y: Tensor, x: Tensor, index: Tensor) -> Tensor:
            return loss(out, boxes[index.to(boxes.device)], (x.shape[2], x.shape[3]))

        train(_Raw(detector), data, self.recipe, seed, loss=value)

    def images(self, scenes: SceneSource, ids: Sequence[int], seed: int) -> tuple[ImageSet, Tensor]:
        """Training images with random paint, and their boxes [n, 4]; zeros where no vehicle is."""
        vehicles = torch.tensor(scenes.vehicles())
        pictures, boxes, numbers = [], [], []
        for start in range(0, len(ids), AT_ONCE):
            maps = scenes.scenes("train", ids[start : start + AT_ONCE])
            box = maps.box * torch.isin(maps.labels, vehicles)[:, None]
            for k in range(self.paints):
                number = maps.ids * self.paints + k
                x = compose(maps, self._paint(Draws(seed, number)), PERIOD)
                mirrored = k % 2 == 1
                pictures.append(((x.flip(3) if mirrored else x) * 255).round().to(torch.uint8))
                boxes.append(_mirrored(box, x.shape[3]) if mirrored else box)
                numbers.append(number)
        truth = torch.cat(boxes)
        seen = (truth[:, 2] > truth[:, 0]).long()
        return ImageSet(torch.cat(pictures), seen, torch.cat(numbers), 2, "painted scenes"), truth

    def _paint(self, draws: Draws) -> Tensor:
        """Textures, sRGB [n, 3, 16, 16]."""
        flat = draws.uniform((3, 1, 1), purpose="colour").expand(-1, -1, 16, 16)
        chosen = draws.uniform((), purpose="patterned") < self.patterned
        return torch.where(chosen[:, None, None, None], draws.uniform((3, 16, 16), purpose="pattern"), flat)


def _mirrored(box: Tensor, width: int) -> Tensor:
    """Boxes [n, 4] of mirrored images; empty ones stay empty."""
    left, top, right, bottom = box.unbind(1)
    turned = torch.stack([width - right, top, width - left, bottom], dim=1)
    return torch.where((right > left)[:, None], turned, box)
