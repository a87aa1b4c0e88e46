"""Cues: accuracy on images that keep only their shape, their texture, their grey values or some frequencies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from siegebench import ops
from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from siegebench.oracle import Oracle
from siegebench.threat import ThreatModel
from siegebench.types import Count, Measure

from . import _maps


@dataclass(frozen=True, kw_only=True)
class Cues(Measure):
    """Accuracy on changed images, over the images that the victim classifies correctly unchanged.

    Chen, Agarwal, Nguyen, "The shape and simplicity biases of adversarially robust ImageNet-trained CNNs", arXiv
    2006.09373, compare networks on images that keep one cue:
        silhouette    grey above its mean is white, the rest is black: only the shape is left
        scrambled     a grid of `tiles` x `tiles`, in random order: only the texture is left
        grey          the mean of the colours
        low_C, high_C frequencies up to C cycles per image, or above them (with the mean of each colour)
    Metrics: `NAME_kept`, the share of the correctly classified images that stay correctly classified; `clean_acc`; and
    `commonest_kept`, the control: the same share for the best constant answer. `arrays` has the outcome of each image,
    so that two victims can be compared on the images that both classify correctly. Pictures: the changes of the first
    images, side by side.

    Random: the order of the tiles, for each image; noise of a randomised model.

    Cost: one forward pass per image and change.

    Differs from the paper: no images in which the shape of one class has the texture of another, which are made by
    style transfer, and no contours. The silhouette is a threshold, not a mask of the object.

    Attributes:
        tiles: in each direction; remaining rows and columns stay in place.
        cutoffs: of the low and high frequencies, in cycles per image.
        averaged: forward passes averaged for each answer of a randomised model.
    """

    every: ClassVar[bool] = True

    tiles: Annotated[int, Field(ge=2, strict=True)] = 4
    cutoffs: tuple[Count, ...] = (2, 4, 8, 12)
    averaged: Count = 4

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> dict[str, Any]:
        if min(x.shape[2:]) < self.tiles:
            raise NotApplicable(f"images of {x.shape[3]}x{x.shape[2]} pixels have no {self.tiles}x{self.tiles} tiles")
        answer = oracle.averaged(self.averaged) if oracle.model.randomized else oracle
        clean = answer.labels(x) == y
        changed = self.changes(x, draws)
        right = {name: answer.labels(image) == y for name, image in changed.items()}
        metrics = {"clean_acc": float(clean.double().mean())}
        if bool(clean.any()):
            metrics |= {f"{name}_kept": float(r[clean].double().mean()) for name, r in right.items()}
            metrics["commonest_kept"] = float(y[clean].bincount().max()) / int(clean.sum())
        rows = clean.nonzero().squeeze(1)[: _maps.SHOWN]
        pictures = _maps.side_by_side(x[rows], *(image[rows] for image in changed.values()))
        arrays = {"clean": clean, **right}
        return {"metrics": metrics, "flags": [], "arrays": arrays, "pictures": pictures}

    def changes(self, x: Tensor, draws: Draws) -> dict[str, Tensor]:
        """The images with one cue each, [n, C, H, W] in [0, 1]."""
        grey = x.mean(dim=1, keepdim=True)
        silhouette = (grey > grey.mean(dim=(2, 3), keepdim=True)).to(x)
        found = {
            "silhouette": silhouette.expand_as(x),
            "scrambled": scrambled(x, self.tiles, draws),
            "grey": grey.expand_as(x),
        }
        for c in self.cutoffs:
            low = low_pass(x, c)
            found |= {f"low_{c}": low.clamp(0, 1), f"high_{c}": high_pass(x, low).clamp(0, 1)}
        return found


def scrambled(x: Tensor, tiles: int, draws: Draws) -> Tensor:
    """The tiles of each image in an order of its own."""
    n, channels, height, width = x.shape
    h, w = height // tiles, width // tiles
    inner = x[..., : h * tiles, : w * tiles].reshape(n, channels, tiles, h, tiles, w)
    flat = inner.permute(0, 2, 4, 1, 3, 5).reshape(n, tiles * tiles, channels, h, w)
    order = draws.uniform((tiles * tiles,), purpose="tiles").argsort(dim=1).to(x.device)
    flat = flat.gather(1, ops.over(order.flatten(), flat.flatten(0, 1)).view(n, -1, 1, 1, 1).expand_as(flat))
    out = x.clone()
    moved = flat.reshape(n, tiles, tiles, channels, h, w).permute(0, 3, 1, 4, 2, 5)
    out[..., : h * tiles, : w * tiles] = moved.reshape(n, channels, h * tiles, w * tiles)
    return out


def low_pass(x: Tensor, cutoff: int) -> Tensor:
    """Frequencies of at most `cutoff` cycles per image, by radius."""
    rows, columns = (torch.fft.fftfreq(s, 1 / s, dtype=x.dtype, device=x.device) for s in x.shape[2:])
    kept = (rows[:, None].square() + columns.square()).sqrt() <= cutoff
    return torch.fft.ifft2(torch.fft.fft2(x) * kept).real


def high_pass(x: Tensor, low: Tensor) -> Tensor:
    """What `low_pass` removed, around the mean of each colour."""
    return x - low + x.mean(dim=(2, 3), keepdim=True)
