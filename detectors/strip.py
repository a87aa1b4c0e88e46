"""STRIP: an image with a trigger keeps its label under any overlay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.data import Granted
from siegebench.draws import Draws
from siegebench.types import Count, InputDetector, Positive, Scorer

GRADIENTS = 10  # overlays in one gradient: the graph of each is kept until the backward pass


@dataclass(frozen=True, kw_only=True)
class STRIP(InputDetector):
    """Superimpose N clean images on x and average the entropy H of the predictions; score = -H (Gao et al. 2019).

    Random: the overlays of each input, drawn with replacement from the clean budget by the id of the input.

    Cost: N forward passes per image. The gradient for attacks is that of the first 10 overlays; each step of an attack
    draws others.

    Attributes:
        overlays: N.
        alpha: weight of the overlay in clamp(x + alpha x_i).

    Differs from the paper: no threshold is set, and the overlay has half its weight. The plain sum of the paper
    (alpha = 1, preset `plain`) saturates bright images and hides a faint trigger: docs/replications/strip.md.
    """

    poisons: ClassVar[tuple[dict[str, Any], ...]] = ({"name": "tact"},)  # overlays hide which class the image has

    overlays: Count = 100
    alpha: Positive = 0.5

    def fit(self, model: Classifier, data: Granted, draws: Draws) -> Scorer:
        clean = data.clean.images.to(next(model.parameters()).device)

        def mean(x: Tensor, draws: Draws, call: Callable[..., Tensor], overlays: int) -> Tensor:
            total = torch.zeros(len(x), device=x.device)
            for k in range(overlays):
                chosen = draws.integers(len(clean), (), k, "strip").to(clean.device)
                overlay = clean[chosen].to(x) / 255
                z = call((x + self.alpha * overlay).clamp(0, 1), draws.at(k) if model.randomized else None)
                log_p = z.float().log_softmax(dim=1)
                total -= (log_p.exp() * log_p).sum(dim=1)
            return -total / overlays

        return Scorer(
            lambda x, draws: mean(x, draws, model, self.overlays),
            lambda x, draws: mean(x, draws, model.backward_model, min(self.overlays, GRADIENTS)),
        )
