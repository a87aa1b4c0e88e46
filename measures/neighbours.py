"""Neighbours: whether the nearest training images in feature space have the right label, without a last layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench.contrastive import features
from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.threat import NORMS, Norm, ThreatModel
from siegebench.types import Count, Lesson, Measure, Positive


@dataclass(frozen=True)
class Known:
    """What is known of the training images: features of length 1 [N, d], labels [N], and the number of classes."""

    h: Tensor
    y: Tensor
    classes: int


def vote(h: Tensor, known: Known, nearest: int, temperature: float) -> Tensor:
    """The votes [n, K] for features h [n, d] of length 1."""
    s, i = (h @ known.h.T).topk(min(nearest, len(known.h)), dim=1)
    weight = ((s - s[:, :1]) / temperature).exp()  # relative to the nearest, which changes no vote
    return torch.zeros(len(h), known.classes, dtype=h.dtype).scatter_add_(1, known.y[i], weight)


@dataclass(frozen=True, kw_only=True)
class Neighbours(Measure):
    """Accuracy of the vote of the k nearest training images, sum_i exp(s_i / T) over those of each class.

    Wu, Xiong, Yu, Lin, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018, arXiv
    1805.01978. s_i is the cosine of the features of the image and of training image i; features are the input of the
    last linear layer. It is the usual monitor of features that are learnt without labels (`contrastive`), and needs no
    training of a last layer.

    Metrics: `knn_accuracy` of the vote; `knn_agreement`, the share of images to which the model gives the same label as
    the vote.

    Random: the training images, if there are more than `images`.

    Cost: one forward pass for each training image and one for each image.

    Differs from the paper: T is 0.1, not 0.07, as in a later attack on such features (`ctrl`).

    Attributes:
        nearest: k.
        temperature: T.
        images: training images that vote, at most.
    """

    learns: ClassVar[bool] = True
    every: ClassVar[bool] = True
    norms: ClassVar[tuple[Norm, ...]] = NORMS

    nearest: Count = 200
    temperature: Positive = 0.1
    images: Count = 20_000

    def learn(self, oracle: Oracle, data: ImageSet, threat: ThreatModel, draws: Draws) -> Lesson:
        shown = data.select(draws.order("neighbours")[: self.images].sort().values)
        return Known(F.normalize(features(oracle.model, shown), dim=1), shown.labels, data.num_classes)

    def run(
        self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws, lesson: Lesson = None
    ) -> dict[str, Any]:
        assert isinstance(lesson, Known)
        with torch.no_grad():
            h = F.normalize(oracle.model.features(x).cpu(), dim=1)
        found, answer = vote(h, lesson, self.nearest, self.temperature).argmax(dim=1), oracle.logits(x).argmax(dim=1)
        return {
            "metrics": {
                "knn_accuracy": float((found == y.cpu()).double().mean()),
                "knn_agreement": float((found == answer.cpu()).double().mean()),
            },
            "flags": [],
        }
