"""Whether a victim sees a vehicle: the one place where its answer becomes a score.

A classifier gives one score for an image: the sum of its softmax over the labels of vehicles.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Sighting:
    """Scores for "vehicle", as logits, so that neither s near 1 nor 1 - s near 0 lose their digits.

    Attributes:
        logit: [n, K], log(s / (1 - s)) of each of K candidates; K = 1 for a classifier.
    """

    logit: Tensor

    @property
    def score(self) -> Tensor:
        """s in [0, 1], [n, K]."""
        return self.logit.sigmoid()

    @property
    def hidden(self) -> Tensor:
        """log(1 - s), [n, K]: 0 where nothing is seen."""
        return F.logsigmoid(-self.logit)


def of_logits(z: Tensor, vehicles: tuple[int, ...]) -> Sighting:
    """The sighting of a classifier, from its logits [n, classes]; `vehicles` are the labels of vehicles."""
    own = torch.zeros(z.shape[1], dtype=torch.bool, device=z.device)
    own[list(vehicles)] = True
    return Sighting((z[:, own].logsumexp(dim=1) - z[:, ~own].logsumexp(dim=1))[:, None])


def seen(z: Tensor, vehicles: tuple[int, ...]) -> Tensor:
    """Whether the answer to each image is a vehicle, bool [..., n], for logits [..., n, classes].

    Logits that are not finite count as no vehicle.
    """
    labels = torch.tensor(vehicles, device=z.device)
    return torch.isin(z.argmax(dim=-1), labels) & torch.isfinite(z).all(dim=-1)
