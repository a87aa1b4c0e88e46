"""Data sets and models: where images and networks come from."""

from __future__ import annotations

from abc import abstractmethod

from siegebench.classifier import Classifier
from siegebench.data import ImageSet, Size
from siegebench.types.base import Entry


class DataSource(Entry):
    """Where images come from."""

    @abstractmethod
    def load(self, split: str) -> ImageSet:
        """All images of `train` or `test`.

        Raises:
            DataError: when they are missing or corrupt; says where it looked and what to type.
        """

    def scan(self, split: str) -> ImageSet:
        """The same set, whose images may be decoded only when they are read (see rows.Reader).

        A source that decodes or copies many large images overrides this, so that a small slice costs little.

        Raises:
            DataError: as `load` does; that an image is corrupt may show later.
        """
        return self.load(split)


class ModelSource(Entry):
    """Where a network comes from: an architecture, with published weights or a recipe to train it."""

    @abstractmethod
    def build(self, *, num_classes: int, size: Size) -> Classifier:
        """The network for images of this size, with its published weights when it has some.

        Args:
            size: the side of square images, else (height, width).

        Raises:
            ModelError: when weights are missing, corrupt, not finite or of another shape.
        """

    def pretrained(self) -> bool:
        """Whether `build` brings trained weights; otherwise the harness trains with `recipe`."""
        return False
