"""Alignment: how much the gradient of a classifier looks like the image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench import ops
from siegebench.cells import Flag
from siegebench.draws import Draws, derive_seed
from siegebench.errors import NotApplicable
from siegebench.oracle import Oracle
from siegebench.threat import ThreatModel
from siegebench.types import Count, Measure

from . import _maps

HALF_NYQUIST = 0.25  # cycles per pixel


@dataclass(frozen=True, kw_only=True)
class Alignment(Measure):
    """cos(g, x - mean(x)), where g is the gradient of the margin of the true class; and how smooth g is.

    Tsipras, Santurkar, Engstrom, Turner, Madry, "Robustness May Be at Odds with Accuracy", ICLR 2019, arXiv 1805.12152,
    found that gradients of robust networks look like the images; Etmann, Lunz, Maass, Schoenlieb, "On the Connection
    Between Adversarial Robustness and Saliency Map Interpretability", ICML 2019, arXiv 1905.04172, call the cosine
    alignment. The margin is f_y - max_{k != y} f_k; logits times a number have the same cosines. Metrics, means over
    the images:
        cosine, cosine_abs   of g and x minus its mean in each colour, and the mean of its absolute value
        high_frequency       share of |FFT(g)|^2 above half of the Nyquist frequency (by radius)
        roughness            mean |difference of neighbours| over the mean of the saliency map, |g| summed over colours
        central              share of the saliency map in the central quarter of the image; 0.25 if uniform
    The same with `_untrained` is the control: the same architecture with new weights. Images whose gradient is zero are
    left out, with the flag `zero_maps`. Pictures: image and saliency map, side by side.

    Random: the weights of the untrained network; noise of a randomised model.

    Cost: one forward and one backward pass per image, twice.

    Differs from the papers: Etmann et al. do not subtract the mean. The other three figures are ours.

    Attributes:
        averaged: forward passes averaged for each gradient of a randomised model.
    """

    averaged: Count = 4

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> dict[str, Any]:
        def of(seen: Oracle) -> Tensor:
            return -seen.as_attacked(self.averaged).gradient(x, partial(ops.margin, y=y))[0]

        g = of(oracle)
        found = aligned(g, x)
        kept = ops.size(g, "linf") > 0
        flags = [] if bool(kept.all()) else [no_maps(kept)]
        metrics = {name: float(value[kept].mean()) for name, value in found.items() if bool(kept.any())}
        try:
            twin = oracle.model.fresh(derive_seed(draws.seed, "untrained")).to(x).eval()
        except NotApplicable:
            twin = None
        if twin is not None:
            g_twin = of(oracle.of(twin))
            kept = ops.size(g_twin, "linf") > 0
            control = aligned(g_twin[kept], x[kept])
            metrics |= {f"{name}_untrained": float(v.mean()) for name, v in control.items() if bool(kept.any())}
        first = slice(_maps.SHOWN)
        pictures = _maps.side_by_side(x[first], _maps.drawn(_maps.saliency(g[first]), x.shape[1]))
        arrays = {"cosine": found["cosine"]}
        return {"metrics": metrics, "flags": flags, "arrays": arrays, "pictures": pictures}


def aligned(g: Tensor, x: Tensor) -> dict[str, Tensor]:
    """The figures of each image, [n], float64; 0 where the gradient g is zero."""
    g, x = g.double(), x.double()
    cosine = F.cosine_similarity(ops.flat(g), ops.flat(x - x.mean(dim=(2, 3), keepdim=True)))
    h = _maps.saliency(g)
    height, width = h.shape[1:]
    top, left = height // 4, width // 4
    return {
        "cosine": cosine,
        "cosine_abs": cosine.abs(),
        "high_frequency": high_share(g),
        "roughness": variation(h) / h.mean(dim=(1, 2)).clamp(min=1e-300),
        "central": h[:, top : height - top, left : width - left].sum(dim=(1, 2)),
    }


def high_share(g: Tensor) -> Tensor:
    """Share of the energy of g [n, C, H, W] above half of the Nyquist frequency, [n]."""
    power = torch.fft.fft2(g).abs().square().sum(dim=1)
    rows, columns = (torch.fft.fftfreq(s, dtype=g.dtype, device=g.device) for s in g.shape[2:])
    high = (rows[:, None].square() + columns.square()).sqrt() > HALF_NYQUIST
    return (power * high).sum(dim=(1, 2)) / power.sum(dim=(1, 2)).clamp(min=1e-300)


def variation(h: Tensor) -> Tensor:
    """Mean |difference| of neighbours in maps [n, H, W]: the mean of both directions, [n]."""
    return (h.diff(dim=1).abs().mean(dim=(1, 2)) + h.diff(dim=2).abs().mean(dim=(1, 2))) / 2


def no_maps(kept: Tensor) -> dict[str, str]:
    """The flag for images that are left out."""
    told = f"the saliency map of {int((~kept).sum())} of {len(kept)} images is zero; they are left out"
    return Flag("zero_maps", "flag", told).as_dict()
