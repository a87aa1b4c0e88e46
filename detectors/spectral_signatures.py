"""Spectral signatures: poisoned images of a class stand out along the first singular vector of its features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.data import Granted
from siegebench.draws import Draws
from siegebench.types import DatasetDetector

from ._training_set import features, members


@dataclass(frozen=True, kw_only=True)
class SpectralSignatures(DatasetDetector):
    """Score = <h - mean of its class, v>^2, v: first right singular vector of the centred features of the class.

    Tran, Li, Madry, NeurIPS 2018, arXiv 1811.00636. By construction, poisoned images are not found if they are the
    majority of their class. Classes of one image score 0.

    Nothing is random. Cost: one forward pass per image and one singular value decomposition for each class.

    Attributes:
        compare: scores of different classes are compared as they are (`raw`), or by their rank within the class
            (`ranks`, from 0 to 1): then the same fraction of every class is suspected, as in the paper.

    Differs from the paper: it removes 1.5 times the true number of poisoned images from the class, and so knows the
    rate; here nothing is removed and thresholds come from the evaluation.
    """

    poisons: ClassVar[tuple[dict[str, Any], ...]] = ({"name": "adaptive_blend"}, {"name": "adaptive_patch"})

    compare: Literal["raw", "ranks"] = "raw"

    def score(self, model: Classifier, data: Granted, draws: Draws) -> Tensor:
        train = data.train
        h = features(model, train)
        out = torch.zeros(len(train), dtype=torch.float64)
        for c in train.labels.unique().tolist():
            index = members(train, c)
            if len(index) < 2:
                continue
            own = outlyingness(h[index])
            out[index] = own if self.compare == "raw" else own.argsort().argsort().double() / (len(own) - 1)
        return out


def outlyingness(h: Tensor) -> Tensor:
    """Squared projections [n] of centred features on their first right singular vector."""
    h = h - h.mean(dim=0)
    _, _, v = torch.linalg.svd(h, full_matrices=False)
    projected: Tensor = (h @ v[0]).square()
    return projected
