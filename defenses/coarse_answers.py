"""Coarse answers: rounded, truncated or flattened scores, or labels only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siegebench.classifier import Classifier
from siegebench.draws import Draws
from siegebench.types import Count, Defense, Positive

from ._answers import ChangedAnswers


class Coarse(nn.Module):
    """Posteriors with less information: flattened, then truncated, then rounded."""

    def __init__(self, digits: int | None, top: int | None, temperature: float, labels: bool) -> None:
        super().__init__()
        self.digits, self.top, self.temperature, self.labels = digits, top, temperature, labels

    def forward(self, p: Tensor, x: Tensor, draws: Draws) -> Tensor:
        classes = p.shape[1]
        if self.labels:
            return F.one_hot(p.argmax(dim=1), classes).to(p.dtype)
        if self.temperature != 1:
            p = (p.clamp(min=1e-12).log() / self.temperature).softmax(dim=1)
        if self.top is not None and self.top < classes:
            best, where = p.topk(self.top, dim=1)
            rest = (1 - best.sum(dim=1, keepdim=True)) / (classes - self.top)
            p = rest.expand_as(p).scatter(1, where, best)
        if self.digits is not None:
            rounded = torch.round(p, decimals=self.digits)
            p = torch.where(rounded.sum(dim=1, keepdim=True) > 0, rounded, torch.ones_like(p))
        return p


@dataclass(frozen=True, kw_only=True)
class CoarseAnswers(Defense):
    """Return less of the posterior: p^(1/T), then its largest entries, then rounded; or the top-1 class alone.

    Such a defense only reduces the information in the scores. A thief that uses labels only is not affected, so it is
    the adaptive attack. If rounding leaves only zeros, all classes get the same score; of equal scores the first
    class is the decision. Nothing is random.

    Attributes:
        digits: decimal digits of each probability; null leaves them.
        top: number of classes whose probability is given; the others share the rest equally. Null gives all.
        temperature: T.
        labels: give probability 1 to the top-1 class; the other parameters then have no effect.
    """

    differentiable: ClassVar[bool] = False
    tracks: ClassVar[tuple[str, ...]] = ("extraction",)

    digits: Count | None = 1
    top: Count | None = None
    temperature: Positive = 1.0
    labels: bool = False

    def wrap(self, model: Classifier) -> Classifier:
        return ChangedAnswers(model, Coarse(self.digits, self.top, self.temperature, self.labels))
