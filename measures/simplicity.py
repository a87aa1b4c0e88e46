"""Simplicity: how smooth the filters and maps of a network are, and to how many classes a channel responds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from siegebench import ops
from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from siegebench.oracle import Oracle
from siegebench.threat import ThreatModel
from siegebench.types import Count, Measure, Positive

from .alignment import variation


@dataclass(frozen=True, kw_only=True)
class Simplicity(Measure):
    """Smoothness of kernels and maps of convolutions, and the classes of the images that excite a channel most.

    Chen, Agarwal, Nguyen, "The shape and simplicity biases of adversarially robust ImageNet-trained CNNs", arXiv
    2006.09373, find that robust networks have smoother filters, which remove noise, and channels that respond to
    fewer kinds of inputs. Metrics:
        kernel_roughness      mean |difference of neighbours| over mean |w|, of the first convolution with kernels
                              larger than 1x1, mean over its kernels; 1.41 for independent normal weights
        noise_passed_first    variation of a channel's map for the image with noise N(0, sigma^2) over that for the
                              image; mean over channels and images, for that convolution
        noise_passed          the same, mean over all convolutions
        class_entropy         entropy (nats) of the classes of the `strongest` images of a channel, by the largest value
                              of its map in the last convolution; mean over the channels that are not constant
        class_entropy_chance  the control: the same for as many random images

    Random: the noise, and the random images.

    Cost: three forward passes per image.

    Differs from the paper: it names filters and concepts with the annotated data set Broden, which is not used here.

    Attributes:
        sigma: of the noise.
        strongest: images per channel.
    """

    every: ClassVar[bool] = True

    sigma: Positive = 0.05
    strongest: Count = 20

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> dict[str, Any]:
        convolutions = [m for m in oracle.model.modules() if isinstance(m, nn.Conv2d)]
        wide = next((m for m in convolutions if min(m.kernel_size) > 1), None)
        if wide is None:
            raise NotApplicable("simplicity reads convolutions with kernels larger than 1x1; this model has none")
        noisy = (x + self.sigma * draws.normal(tuple(x.shape[1:]), purpose="noise").to(x)).clamp(0, 1)
        clean, noise = self._rough(oracle, x, convolutions), self._rough(oracle, noisy, convolutions)
        passed = {m: (noise[m] / clean[m])[clean[m] > 0] for m in clean if m in noise}
        means = {m: float(ratio.mean()) for m, ratio in passed.items() if len(ratio)}
        metrics = {"kernel_roughness": roughness(wide.weight.detach())}
        if wide in means:
            metrics["noise_passed_first"] = means[wide]
        if means:
            metrics["noise_passed"] = sum(means.values()) / len(means)
        return {"metrics": metrics | self._classes(oracle, x, y, convolutions[-1], draws), "flags": []}

    def _rough(self, oracle: Oracle, x: Tensor, layers: list[nn.Conv2d]) -> dict[nn.Module, Tensor]:
        """Variation of the map of each image and channel, [n, C], for each convolution that runs."""
        found: dict[nn.Module, list[Tensor]] = {}

        def keep(layer: nn.Module, out: Tensor) -> None:
            if min(out.shape[2:]) > 1:
                found.setdefault(layer, []).append(variation(out.flatten(0, 1)).view(out.shape[:2]))

        with _watched(layers, keep):
            oracle.logits(x)
        return {layer: torch.cat(parts) for layer, parts in found.items()}

    def _classes(self, oracle: Oracle, x: Tensor, y: Tensor, last: nn.Conv2d, draws: Draws) -> dict[str, float]:
        strength: list[Tensor] = []
        with _watched([last], lambda _, out: strength.append(out.amax(dim=(2, 3)))):
            oracle.logits(x)
        value = torch.cat(strength) if strength else x.new_zeros(len(x), 1)
        k = min(self.strongest, len(x))
        alive = value.amax(dim=0) > value.amin(dim=0)
        if len(value) != len(x) or not bool(alive.any()):
            return {}
        order = draws.uniform((value.shape[1],), purpose="chance").to(value)
        chosen = (v[:, alive].topk(k, dim=0).indices for v in (value, order))
        mine, chance = (float(entropy(y[index].T, oracle.num_classes).mean()) for index in chosen)
        return {"class_entropy": mine, "class_entropy_chance": chance}


@contextmanager
def _watched(layers: list[nn.Conv2d], keep: Any) -> Iterator[None]:
    """Call `keep(layer, output)` after each pass of a layer."""
    handles = [m.register_forward_hook(lambda m, _args, out: keep(m, out)) for m in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def roughness(w: Tensor) -> float:
    """Mean |difference of neighbours| over mean |w| of kernels [out, in, h, w], mean over those not zero."""
    kernels = w.flatten(0, 1).double()
    size = ops.flat(kernels).abs().mean(dim=1)
    return float((variation(kernels)[size > 0] / size[size > 0]).mean())


def entropy(labels: Tensor, classes: int) -> Tensor:
    """Entropy in nats of the labels of each row, [n, k] to [n]."""
    p = nn.functional.one_hot(labels, classes).double().mean(dim=1)
    return -torch.special.xlogy(p, p).sum(dim=1)
