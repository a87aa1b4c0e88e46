"""Layers: pooled features of the stages of a network, for detectors and for defenses that look at features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from siegebench.classifier import Classifier
from siegebench.draws import Draws
from siegebench.prepare import at_once
from siegebench.rows import Rows

BATCH = 256  # largest number of images per pass, also on a GPU


class Layers:
    """Spatial means of the feature maps of a network, one [n, C] for each size of the maps, from the first to the last.

    Of the maps of one size, those of the last of the outermost modules are taken: in a residual network the stem and
    each stage. A network without maps gives the input of its last linear layer.

    A map is an output [n, C, h, w] or [n, h, w, C]; h and w have the proportion of the images that enter the network,
    to within one position, which says what the axes are: the reading that fits better is taken, [n, C, h, w] if both
    fit alike. What fits neither, such as the heads of an attention layer, is not a map.
    """

    def __init__(self, model: Classifier, sample: Tensor) -> None:
        self.model = model
        seen: dict[tuple[int, ...], tuple[int, str, tuple[int, int]]] = {}
        images: list[tuple[int, ...]] = []  # [h, w] of what enters the first module, after any resizing
        depth = {name: name.count(".") for name, _ in model.named_modules() if name}

        def watch(name: str) -> Callable[..., None]:
            def hook(_module: nn.Module, args: Any, out: Any) -> None:
                if not images:
                    given = args[0] if args and isinstance(args[0], Tensor) and args[0].dim() == 4 else sample
                    images.append(tuple(given.shape[2:]))
                if isinstance(out, Tensor) and out.dim() == 4 and len(out) == len(sample):
                    axes = _spatial(tuple(out.shape), images[0])
                    size = tuple(out.shape[axis] for axis in axes or ())
                    if axes and (size not in seen or depth[name] <= seen[size][0]):
                        seen[size] = (depth[name], name, axes)

            return hook

        handles = [m.register_forward_hook(watch(name)) for name, m in model.named_modules() if name]
        try:
            with torch.no_grad():
                model(sample, Draws(0, torch.arange(len(sample), device=sample.device)) if model.randomized else None)
        finally:
            for handle in handles:
                handle.remove()
        self.names = [name for _, name, _ in seen.values()]
        self.axes = [axes for _, _, axes in seen.values()]  # the spatial axes of each map

    def __call__(self, x: Tensor, draws: Draws | None = None) -> list[Tensor]:
        """Features of images; gradients pass through. A randomised network takes its noise from the draws."""
        return self.with_logits(x, draws)[0]

    def with_logits(self, x: Tensor, draws: Draws | None = None) -> tuple[list[Tensor], Tensor]:
        """(features, logits) of images, in one pass."""
        found: dict[str, Tensor] = {}

        def keep(name: str, axes: tuple[int, int]) -> Callable[..., None]:
            def hook(_module: nn.Module, _args: Any, out: Tensor) -> None:
                found[name] = out.mean(dim=axes)

            return hook

        taken = zip(self.names, self.axes, strict=True)
        handles = [self.model.get_submodule(name).register_forward_hook(keep(name, axes)) for name, axes in taken]
        try:
            z = self.model(x, draws if self.model.randomized else None)
        finally:
            for handle in handles:
                handle.remove()
        if not self.names:
            return [self.model.features(x)], z
        return [found[name] for name in self.names], z

    @torch.no_grad()
    def of(self, x: Tensor) -> list[Tensor]:
        """Features of many images on the CPU, in batches, float64."""
        device = next(self.model.parameters()).device
        parts = [[f.double().cpu() for f in self(x[i].to(device), Draws(0, i.to(device)))] for i in batches(x, device)]
        return [torch.cat(layer) for layer in zip(*parts, strict=True)]


def _spatial(shape: tuple[int, ...], image: tuple[int, ...]) -> tuple[int, int] | None:
    """The axes of height and width of an output [n, ., ., .] for images (H, W); None if it is no feature map."""
    height, width = image
    # how far h / w is from H / W, in positions times the longer side; the first of equals is taken
    off = {axes: abs(shape[axes[0]] * width - shape[axes[1]] * height) for axes in ((2, 3), (1, 2))}
    best = min(off, key=lambda axes: off[axes])
    return best if off[best] < max(height, width) else None


def batches(x: Tensor | Rows, device: torch.device) -> tuple[Tensor, ...]:
    """Indices of images, as many at a time as a pass on this device takes."""
    return torch.arange(len(x)).split(min(BATCH, at_once(x, device)))
