"""Sources of data sets and models."""

from __future__ import annotations

from abc import abstractmethod

from siegebench.classifier import Classifier
from siegebench.data import ImageSet, Size
from siegebench.types.base import Entry


class DataSource(Entry):
    """A source of images."""

    @abstractmethod
    def load(self, split: str) -> ImageSet:
        """All images of `train` or `test`.

        Raises:
            DataError: when they are missing or corrupt; names the folders searched and the setting to change.
        """

    def scan(self, split: str) -> ImageSet:
        """The same set; its images may be decoded only when they are read (see rows.Reader).

        A source that decodes or copies many large images overrides this, so that a small subset costs little.

        Raises:
            DataError: as `load` does; a corrupt image may be reported later, when it is read.
        """
        return self.load(split)


class ModelSource(Entry):
    """A source of networks: an architecture, with published weights or a recipe to train it."""

    @abstractmethod
    def build(self, *, num_classes: int, size: Size) -> Classifier:
        """The network for images of this size, with published weights if it has any.

        Args:
            size: the side of square images, else (height, width).

        Raises:
            ModelError: when weights are missing, corrupt, not finite or of another shape.
        """

    def pretrained(self) -> bool:
        """Whether `build` returns trained weights; otherwise the harness trains with `recipe`."""
        return False
