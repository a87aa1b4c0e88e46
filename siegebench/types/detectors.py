"""Detectors score inputs, training images or models by how likely they are backdoored or adversarial."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from siegebench.classifier import Classifier
from siegebench.data import Granted
from siegebench.draws import Draws
from siegebench.types.base import Entry


@dataclass(frozen=True)
class Verdict:
    """The result of a model-level detector for one model.

    Attributes:
        score: larger = more suspicious.
        backdoored: at the published threshold.
        targets: the suspected target classes of the backdoor, the most suspicious first.
        triggers: for detectors that invert triggers, that of each class as a picture [C, H, W] in [0, 1]: stamped on
            mid-grey. They are kept beside the row.
    """

    score: float
    backdoored: bool
    targets: tuple[int, ...] = ()
    triggers: Mapping[int, Tensor] = field(default_factory=dict)


class Detector(Entry):
    """Scores inputs, training images or models as backdoored or adversarial. Larger = more suspicious.

    The evaluator sets the thresholds, except for the published one in a model-level Verdict.

    Class attributes:
        poisons: backdoor attacks (specs as in a suite) that are designed against the detector; boards of backdoors run
            them too and show them in a column of their own.
    """

    poisons: ClassVar[tuple[dict[str, Any], ...]] = ()


Score = Callable[[Tensor, Draws], Tensor]  # images [n, 3, H, W] and their draws to scores [n]


@dataclass(frozen=True)
class Scorer:
    """The scores of a fitted detector, with gradients for attacks that know it.

    Attributes:
        score: the deployed scores.
        backward_model: scores whose gradient for the image is that of `score`, or a useful approximation of it; `score`
            if left out. Their values are not used: an attack compares images by `score`.
    """

    score: Score
    backward_model: Score | None = None

    @torch.no_grad()
    def __call__(self, x: Tensor, draws: Draws) -> Tensor:
        return self.score(x, draws)

    def differentiable(self, x: Tensor, draws: Draws) -> Tensor:
        """Scores whose gradient an attack follows."""
        return (self.backward_model or self.score)(x, draws)


class InputDetector(Detector):
    """Scores single inputs at test time."""

    @abstractmethod
    def fit(self, model: Classifier, data: Granted, draws: Draws) -> Score:
        """Prepare once from the model and the granted data; returns a function from images [n, 3, H, W] to scores.

        Return a `Scorer` wherever the scores have a gradient or an approximation of one. A plain function has none:
        attacks that know the detector then only search for confident misclassifications.
        """


class TrainedDetector(InputDetector):
    """Scores inputs with a network that it trains on the granted data, without using the model under test.

    The weights are stored as an artifact, once for all models.
    """

    @abstractmethod
    def network(self, data: Granted) -> nn.Module:
        """The network before training; it can load weights. All that `train` learns is in its state."""

    @abstractmethod
    def train(self, network: nn.Module, data: Granted, draws: Draws) -> None:
        """Train the network in place, on its device. The initial weights too are drawn here."""

    @abstractmethod
    def scorer(self, network: nn.Module, model: Classifier, data: Granted, draws: Draws) -> Score:
        """As `fit` of other detectors, given the trained network on the device of the model."""

    @final
    def trained(self, data: Granted, draws: Draws, device: torch.device) -> nn.Module:
        """A network that was trained on this device."""
        network = self.network(data).to(device)
        self.train(network, data, draws)
        return network.eval()

    @final
    def fit(self, model: Classifier, data: Granted, draws: Draws) -> Score:
        like = next(model.parameters())
        network = self.trained(data, draws, like.device).to(like.dtype)
        return self.scorer(network, model, data, draws)


class DatasetDetector(Detector):
    """Scores the images of a training set, given the model trained on it."""

    @abstractmethod
    def score(self, model: Classifier, data: Granted, draws: Draws) -> Tensor:
        """Scores [N] of `data.train`, in its order."""


class ModelDetector(Detector):
    """Scores whole models."""

    @abstractmethod
    def judge(self, model: Classifier, data: Granted, draws: Draws) -> Verdict:
        """A verdict on one model."""
