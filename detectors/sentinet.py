"""SentiNet: pastes the most salient region on clean images; if it has a trigger, these get its label."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siegebench.classifier import Classifier, frozen
from siegebench.data import Granted
from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from siegebench.types import Count, InputDetector, Scorer, Share

from ._fitting import logits

SMALLEST = 4  # side of the maps that Grad-CAM can use
BINS = 10  # of the confidence C, in each of which the clean image with the largest F is taken
GRADIENTS = 10  # overlays in one gradient


@dataclass(frozen=True, kw_only=True)
class SentiNet(InputDetector):
    """Score = F - q(C) of the most salient region of the image (Chou, Tramer, Pellegrino, 2020).

    The region: the fraction `region` of the pixels where Grad-CAM of the predicted label c is largest. F: how many of N
    clean images get label c when the region is pasted on them. C: mean confidence (largest softmax) when it is
    pasted with noise in place of its pixels. q: quadratic fit to the upper boundary of the points (C, F) of the
    clean images, which is their largest F in each of ten bins of C; it is not extrapolated.

    Random: the clean images and the noise of each input, by its id. Cost: 2 N forward passes and one backward pass per
    image, for the clean images too. Attacks get the gradient of the mean probability of c over 10 pasted images; the
    region and q(C) are held fixed.

    Only triggers of small extent can be found: a trigger over the whole image is not in the region.

    Attributes:
        overlays: N.
        region: fraction of the pixels.
        images: clean images that q is fitted to.

    Differs from the paper: no class proposals; the region has a fixed size. Grad-CAM uses the last maps with at least
    four rows and columns. It does not know which images are triggered; the common reimplementation uses true masks.

    Raises:
        NotApplicable: for networks without maps of 4x4.
    """

    poisons: ClassVar[tuple[dict[str, Any], ...]] = ({"name": "blended"},)  # a trigger without a place

    overlays: Count = 100
    region: Share = 0.15
    images: Count = 100

    def fit(self, model: Classifier, data: Granted, draws: Draws) -> Scorer:
        p = next(model.parameters())
        clean = data.clean.pixels(slice(None), p.dtype).to(p.device)
        layer = _last_maps(model, clean[:2])

        def pasted(x: Tensor, mask: Tensor, k: int, draws: Draws) -> Tensor:
            under = clean[draws.integers(len(clean), (), k, "sentinet").to(clean.device)]
            return torch.where(mask, x, under)

        def point(x: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
            """(C, F) of images."""
            mask, c = self._region(model, layer, x, draws)
            fooled, sure = torch.zeros(len(x), device=x.device), torch.zeros(len(x), device=x.device)
            for k in range(self.overlays):
                fooled += logits(model, pasted(x, mask, k, draws), draws, k).argmax(dim=1) == c
                noise = draws.uniform(tuple(x.shape[1:]), k, "sentinet noise").to(x)
                sure += logits(model, pasted(noise, mask, k, draws), draws, k).softmax(dim=1).amax(dim=1)
            return sure / self.overlays, fooled / self.overlays

        own = Draws(draws.seed, data.clean.ids[: self.images].to(p.device))
        with torch.no_grad():
            parts = [point(clean[i], own[i]) for i in torch.arange(len(own)).split(100)]
        boundary = _boundary(*(torch.cat(part).cpu().double() for part in zip(*parts, strict=True)))

        def score(x: Tensor, draws: Draws) -> Tensor:
            sure, fooled = point(x, draws)
            return fooled - boundary(sure)

        def backward_model(x: Tensor, draws: Draws) -> Tensor:
            mask, c = self._region(model, layer, x.detach(), draws)
            total = torch.zeros(len(x), device=x.device, dtype=x.dtype)
            for k in range(min(self.overlays, GRADIENTS)):
                given = pasted(x, mask, k, draws)
                z = model.backward_model(given, draws.at(k) if model.randomized else None)
                total = total + z.softmax(dim=1).gather(1, c[:, None])[:, 0]
            return total / min(self.overlays, GRADIENTS)

        return Scorer(score, backward_model)

    def _region(self, model: Classifier, layer: str, x: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """(masks [n, 1, H, W] of the most salient pixels, predicted labels)"""
        cam, c = grad_cam(model, layer, x, draws)
        salient = F.interpolate(cam[:, None], x.shape[-2:], mode="bilinear", align_corners=False).flatten(1)
        low, high = salient.aminmax(dim=1, keepdim=True)
        salient = ((salient - low) / (high - low).clamp(min=1e-12)).round(decimals=4)  # equal pixels must tie exactly
        order = salient.argsort(dim=1, descending=True, stable=True)
        kept = order[:, : max(1, round(self.region * salient.shape[1]))]
        mask = torch.zeros_like(salient, dtype=torch.bool).scatter(1, kept, True)
        return mask.view(len(x), 1, *x.shape[-2:]), c


def grad_cam(model: Classifier, layer: str, x: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """(sum over channels of mean gradient times map [n, h, w], predicted labels), for the logit of each prediction.

    Selvaraju et al. 2017, without the final ReLU, which would make pixels tie.
    """
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _args: object, out: Tensor) -> Tensor:
        kept.append(out)
        return out.clone()  # a later layer may work in place

    handle = model.get_submodule(layer).register_forward_hook(keep)
    try:
        with torch.enable_grad(), frozen(model):
            z = logits(model, x.detach().requires_grad_(True), draws)
            c = z.argmax(dim=1)
            (g,) = torch.autograd.grad(z.gather(1, c[:, None]).sum(), kept[-1])
    finally:
        handle.remove()
    weight = g.mean(dim=(2, 3), keepdim=True)
    return (weight * kept[-1]).sum(dim=1).detach(), c


def _last_maps(model: Classifier, x: Tensor) -> str:
    """Name of the last module of the network that returns maps of at least 4x4."""
    found: list[str] = []

    def watch(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def hook(_module: nn.Module, _args: object, out: object) -> None:
            if isinstance(out, Tensor) and out.dim() == 4 and min(out.shape[2:]) >= SMALLEST and len(out) == len(x):
                found.append(name)

        return module.register_forward_hook(hook)

    handles = [watch(name, module) for name, module in model.named_modules() if name]
    with torch.no_grad():
        logits(model, x, Draws(0, torch.arange(len(x), device=x.device)))
    for handle in handles:
        handle.remove()
    if not found:
        raise NotApplicable(
            f"sentinet needs feature maps of at least {SMALLEST}x{SMALLEST}; {model.card.name} has none"
        )
    return found[-1]


def _boundary(sure: Tensor, fooled: Tensor) -> Callable[[Tensor], Tensor]:
    """q, of a lower degree if fewer than three bins have images; outside of the fitted range of C it is constant."""
    which = (sure * BINS).long().clamp(max=BINS - 1)
    tops = [int(torch.where(which == b, fooled, -1.0).argmax()) for b in which.unique().tolist()]
    powers = sure[tops][:, None] ** torch.arange(min(3, len(tops)))
    a = torch.linalg.lstsq(powers, fooled[tops]).solution.tolist()
    low, high = float(sure.min()), float(sure.max())

    def q(c: Tensor) -> Tensor:
        c = c.clamp(low, high)
        return torch.stack([value * c**k for k, value in enumerate(a)]).sum(dim=0).clamp(0, 1)

    return q
