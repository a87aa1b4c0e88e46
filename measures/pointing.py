"""Pointing: whether attribution maps find the image of a given class in a mosaic of four."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench import ops
from siegebench.cells import Flag
from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from siegebench.oracle import Oracle
from siegebench.threat import ThreatModel
from siegebench.types import Count, Measure

from . import _attributions as attributions
from . import _maps
from ._attributions import Attribution


@dataclass(frozen=True, kw_only=True)
class Pointing(Measure):
    """The share of the positive attribution in the cell of the given class, in 2 x 2 mosaics; 0.25 by chance.

    Nourelahi, Kotthoff, Chen, Nguyen, "How explainable are adversarially-robust CNNs?", arXiv 2205.13042, compare
    attribution methods on robust and other networks by pointing, insertion and deletion. A mosaic has four correctly
    classified images of different classes at half their size; the map is computed for the class of one of them.
    Methods: gradient, input x gradient, SmoothGrad (20 samples), integrated gradients (32 points), Grad-CAM and RISE
    (see `_attributions`), and the control `random`, a map of noise. Metrics for each METHOD:
        METHOD_pointing    mean share in the cell of the given class
        METHOD_insertion   area under the probability of the class as pixels are shown, strongest first, over the
                           probability for the whole image
        METHOD_deletion    the same as pixels are removed; lower is better
    Insertion and deletion are taken on the images themselves; absent pixels have the mean colour of the image. They
    depend on how confident a network is, which is why they are divided by its confidence. `mosaics` is their number,
    and `mosaic_acc` the share of them that the victim gives one of their four classes. Images whose map has no positive
    part are left out, with the flag `zero_maps`. Pictures: the mosaic and its maps, side by side.

    Random: mosaics, the noise of SmoothGrad, masks, and noise of a randomised model.

    Cost: per image about 110 gradients and 1,300 forward passes.

    Differs from the paper: no boxes of objects are used, and signs or digits are in the middle of the image anyway, so
    mosaics take their place. RISE is centred: pixels that do not matter get 0. No LIME, no occlusion, no meaningful
    perturbation.

    Attributes:
        images: the first images, each in a mosaic of its own.
        masks: of RISE.
        points: at which the curves of insertion and deletion are read.
        averaged: forward passes averaged for each output of a randomised model.
    """

    images: Count = 32
    masks: Count = 500
    points: Count = 16
    averaged: Count = 4

    def quick(self) -> Self:
        return replace(self, images=4, masks=4, points=3)

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> dict[str, Any]:
        if len(y.unique()) < 4 or min(x.shape[2:]) < 4:
            raise NotApplicable(f"a mosaic needs images of four classes; {len(y.unique())} are classified correctly")
        few = slice(self.images)
        mosaic, cell, classes = mosaics(x, y, draws[few])
        seen, x, y, draws = oracle.as_attacked(self.averaged)[few], x[few], y[few], draws[few]
        answer = seen.logits(mosaic).argmax(dim=1)
        metrics = {
            "mosaics": float(len(x)),
            "mosaic_acc": float((classes == answer[:, None]).any(dim=1).double().mean()),
        }
        lost, shown = torch.zeros(len(x), dtype=torch.bool, device=x.device), [mosaic]
        for name, method in self.methods().items():
            h = method(seen, mosaic, y, draws.child(name)).clamp(min=0)
            share, total = in_cell(h, cell), h.sum(dim=(1, 2))
            lost |= total == 0
            if bool((total > 0).any()):
                metrics[f"{name}_pointing"] = float(share[total > 0].double().mean())
            shown.append(_maps.drawn(h, x.shape[1]))
            order = method(seen, x, y, draws.child(name)).flatten(1).argsort(dim=1, descending=True, stable=True)
            metrics[f"{name}_insertion"], metrics[f"{name}_deletion"] = self._curves(seen, x, y, order)
        flags = []
        if bool(lost.any()):
            told = f"a map of {int(lost.sum())} of {len(x)} mosaics has no positive part; it is left out"
            flags = [Flag("zero_maps", "flag", told).as_dict()]
        pictures = _maps.side_by_side(*(part[: _maps.SHOWN] for part in shown)).clamp(0, 1)
        return {"metrics": metrics, "flags": flags, "pictures": pictures}

    def methods(self) -> dict[str, Attribution]:
        """The attribution methods by name."""
        return {
            "gradient": attributions.gradient,
            "input_x_gradient": attributions.input_x_gradient,
            "smooth_gradient": attributions.smooth_gradient,
            "integrated_gradients": attributions.integrated_gradients,
            "grad_cam": attributions.grad_cam,
            "rise": partial(attributions.rise, masks=self.masks),
            "random": _noise,
        }

    def _curves(self, seen: Oracle, x: Tensor, y: Tensor, order: Tensor) -> tuple[float, float]:
        """Areas under the curves of insertion and deletion, relative to the confidence; means over the images.

        Args:
            order: pixels of each image, the strongest first, [n, H W].
        """
        rank = order.argsort(dim=1).view(len(x), 1, *x.shape[2:])
        absent = x.mean(dim=(2, 3), keepdim=True).expand_as(x)
        whole = _maps.own(seen.logits(x).softmax(dim=1), y)
        areas = []
        for first, then in ((absent, x), (x, absent)):
            p = torch.zeros_like(whole)
            for k in range(self.points + 1):
                known = rank < round(k / self.points * order.shape[1])
                weight = (0.5 if k in (0, self.points) else 1.0) / self.points  # trapezoids
                p = p + weight * _maps.own(seen.logits(torch.where(known, then, first)).softmax(dim=1), y)
            areas.append(float((p / whole).double().mean()))
        return areas[0], areas[1]


def mosaics(x: Tensor, y: Tensor, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
    """(mosaics [m, C, H, W], the cell 0..3 of image i in mosaic i, the classes of all four [m, 4]).

    Args:
        x, y: all images and labels, of four classes or more.
        draws: of the first m images, each of which gets a mosaic with images of three other classes.
    """
    m, k = len(draws), int(y.max()) + 1
    of_class = F.one_hot(y, k).bool()
    chance = draws.uniform((len(x),), purpose="others").to(x)
    best, image = torch.where(of_class, chance[:, :, None], -1).max(dim=1)  # one image of each class, [m, k]
    rank = torch.where(best >= 0, draws.uniform((k,), purpose="classes").to(x), -1)
    classes = rank.scatter(1, y[:m, None], 2.0).topk(4, dim=1).indices  # the asked one first
    index = image.gather(1, classes)
    index[:, 0] = torch.arange(m, device=x.device)
    place = draws.uniform((4,), purpose="places").to(x).argsort(dim=1)
    index, cell = index.gather(1, place), (place == 0).int().argmax(dim=1)

    channels, height, width = x.shape[1:]
    h, w = height // 2, width // 2
    small = F.interpolate(x, (h, w), mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)
    tiles = small[index].view(m, 2, 2, channels, h, w).permute(0, 3, 1, 4, 2, 5).reshape(m, channels, 2 * h, 2 * w)
    return F.pad(tiles, (0, width - 2 * w, 0, height - 2 * h), mode="replicate"), cell, classes


def in_cell(h: Tensor, cell: Tensor) -> Tensor:
    """The share of maps [m, H, W] without negative values in a cell of each, [m]; 0 for maps of zeros."""
    height, width = (2 * (side // 2) for side in h.shape[1:])
    parts = h[:, :height, :width].unflatten(2, (2, -1)).unflatten(1, (2, -1)).sum(dim=(2, 4)).flatten(1)
    share = parts / parts.sum(dim=1, keepdim=True).clamp(min=torch.finfo(h.dtype).tiny)
    return share.gather(1, cell[:, None]).squeeze(1)


def _noise(oracle: Oracle, x: Tensor, c: Tensor, draws: Draws) -> Tensor:
    return ops.flat(draws.normal(tuple(x.shape[2:]), purpose="random").to(x)).view_as(x[:, 0])
