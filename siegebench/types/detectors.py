"""Detectors: what says which inputs, training images or models look backdoored or adversarial."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.data import Granted
from siegebench.draws import Draws
from siegebench.types.base import Entry


@dataclass(frozen=True)
class Verdict:
    """What a model-level detector says of one model. Larger score = more suspicious."""

    score: float
    backdoored: bool  # at the published threshold
    targets: tuple[int, ...] = ()


class Detector(Entry):
    """Says which inputs, training images or models look backdoored or adversarial. Larger = more suspicious.

    Thresholds are the evaluator's affair, except for the published one inside a model-level Verdict.
    """


class InputDetector(Detector):
    """Scores single inputs at test time."""

    @abstractmethod
    def fit(self, model: Classifier, data: Granted, draws: Draws) -> Callable[[Tensor, Draws], Tensor]:
        """Look at the model and the granted data once; return a function from images [n, 3, H, W] to scores [n]."""


class DatasetDetector(Detector):
    """Scores the images of a training set, given the model trained on it."""

    @abstractmethod
    def score(self, model: Classifier, data: Granted, draws: Draws) -> Tensor:
        """Scores [N] of `data.train`, in its order."""


class ModelDetector(Detector):
    """Judges whole models."""

    @abstractmethod
    def judge(self, model: Classifier, data: Granted, draws: Draws) -> Verdict:
        """A verdict on one model."""
