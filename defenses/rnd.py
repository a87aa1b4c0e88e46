"""RND: Gaussian noise on the image, drawn anew in every forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.data import Granted
from siegebench.draws import Draws
from siegebench.types import Defense, Positive, Share

from ._calibration import calibrate
from ._wrapped import NoisyInput


class CalibratedInput(NoisyInput):
    """Noise on the input whose level is found by `calibrate` and is part of the state.

    The level is NaN before, and so are the logits: the undefended network is never used by mistake.
    """

    nu: Tensor  # type: ignore[assignment]

    def __init__(self, inner: Classifier) -> None:
        super().__init__(inner, 0.0)
        del self.nu
        self.register_buffer("nu", torch.tensor(float("nan")))


@dataclass(frozen=True, kw_only=True)
class RND(Defense):
    """Random noise defense: answer each query with f(x + nu v), v ~ N(0, I) drawn anew for every image and pass.

    Qin, Fan, Zha, Wu, "Random Noise Defense Against Query-Based Black-Box Attacks", NeurIPS 2021, arXiv 2104.11470.

    Intended against attackers who only query outputs and rely on small differences between them. The strength depends
    on nu relative to the size of the attacker's probes. An attacker with gradient access averages the noise away and
    attacks the undefended network.

    Random: the noise. The sum is not clipped to [0, 1]: clipping would change saturated pixels. A nu that is not given
    is searched on up to 2,000 held-out images (means of 5 noisy passes) so that the clean accuracy falls by `drop`. If
    the network was also trained on these images, the nu found is too large.

    Differs from the paper: the variant whose network is fine-tuned under noise (RND-GF) is left out. Calibrating nu by
    clean accuracy is ours; defenses of equal cost can then be compared.

    Attributes:
        nu: standard deviation of the noise in each pixel; null to search for it.
        drop: clean accuracy that may be lost, when nu is null.
    """

    added: ClassVar[tuple[str, ...]] = ("drop",)

    randomized: ClassVar[bool] = True
    adaptive: ClassVar[tuple[dict[str, Any], ...]] = (
        {"name": "eot", "looks": 20, "attack": {"name": "pgd", "loss": "margin", "steps": 20}},
        {"name": "eot", "looks": 20, "attack": {"name": "apgd", "loss": "dlr", "steps": 25, "early_stop": False}},
    )

    nu: Positive | None = 0.02
    drop: Share = 0.01

    @property
    def trains(self) -> bool:  # type: ignore[override]
        """Only a search for nu needs data; keys of rows with a given nu hold no training data."""
        return self.nu is None

    def wrap(self, model: Classifier) -> Classifier:
        return CalibratedInput(model) if self.nu is None else NoisyInput(model, self.nu)

    def fit(self, defended: Classifier, data: Granted, draws: Draws) -> None:
        assert isinstance(defended, CalibratedInput)
        calibrate(defended, defended.nu, data, draws.seed, self.drop)
