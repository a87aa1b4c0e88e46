"""Data sets and models: where images and networks come from."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from siegebench.classifier import Classifier
from siegebench.data import ImageSet
from siegebench.types.base import Entry


class DataSource(Entry):
    """Where images come from."""

    @abstractmethod
    def load(self, split: str) -> ImageSet:
        """All images of `train` or `test`.

        Raises:
            DataError: when they are missing or corrupt; says where it looked and what to type.
        """


class ModelSource(Entry):
    """Where a network comes from: an architecture, with published weights or a recipe to train it."""

    @abstractmethod
    def build(self, *, num_classes: int, size: int) -> Classifier:
        """The network for images of this size, with its published weights when it has some.

        Raises:
            ModelError: when weights are missing, corrupt, not finite or of another shape.
        """

    def pretrained(self) -> bool:
        """Whether `build` brings trained weights; otherwise the harness trains with `recipe`."""
        return False

    def identity(self) -> dict[str, Any]:
        """What decides the weights besides the parameters, such as the sha256 of a checkpoint."""
        return {}
