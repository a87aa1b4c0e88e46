"""RND: Gaussian noise on the image, drawn anew in every forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from siegebench.classifier import Classifier
from siegebench.types import Defense, Positive

from ._wrapped import NoisyInput


@dataclass(frozen=True, kw_only=True)
class RND(Defense):
    """Random noise defense: answer each query with f(x + nu v), v ~ N(0, I) drawn anew for every image and pass.

    Qin, Fan, Zha, Wu, "Random Noise Defense Against Query-Based Black-Box Attacks", NeurIPS 2021, arXiv 2104.11470.

    Intended against attackers who only query outputs and rely on small differences between them. The strength depends
    on nu relative to the size of the attacker's probes. An attacker with gradient access averages the noise away and
    attacks the undefended network.

    Random: the noise. Nothing is trained. The sum is not clipped to [0, 1]: clipping would change saturated pixels.

    Differs from the paper: the variant whose network is fine-tuned under noise (RND-GF) is left out.

    Attributes:
        nu: standard deviation of the noise in each pixel.
    """

    randomized: ClassVar[bool] = True
    adaptive: ClassVar[tuple[dict[str, Any], ...]] = (
        {"name": "eot", "looks": 20, "attack": {"name": "pgd", "loss": "margin", "steps": 20}},
        {"name": "eot", "looks": 20, "attack": {"name": "apgd", "loss": "dlr", "steps": 25, "early_stop": False}},
    )

    nu: Positive = 0.02

    def wrap(self, model: Classifier) -> Classifier:
        return NoisyInput(model, self.nu)
