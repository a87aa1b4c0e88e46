"""Sources of data sets, models and object detectors."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from inspect import signature
from typing import final

from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.data import IMAGE, ImageSet, Size
from siegebench.errors import DataError, ModelError, NotApplicable
from siegebench.object_detector import ObjectDetector
from siegebench.render.maps import Maps
from siegebench.types.base import Entry


class DataSource(Entry):
    """A source of images."""

    @abstractmethod
    def load(self, split: str) -> ImageSet:
        """All images of a split: `train`, `test` or another that the source has.

        Raises:
            DataError: when they are missing or corrupt; names the folders searched and the setting to change. For an
                unknown split, names those that exist.
        """

    def scan(self, split: str) -> ImageSet:
        """The same set; its images may be decoded only when they are read (see rows.Reader).

        A source that decodes or copies many large images overrides this, so that a small subset costs little.

        Raises:
            DataError: as `load` does; a corrupt image may be reported later, when it is read.
        """
        return self.load(split)

    def known_splits(self) -> tuple[str, ...]:
        """The names of the splits. Networks are trained on `train`.

        Raises:
            DataError: when they are listed in a folder that is missing.
        """
        return ("train", "test")

    @final
    def no_split(self, owner: str, split: str) -> DataError:
        """The error for an unknown split; the source raises it.

        Args:
            owner: the data set, for the message.
        """
        *first, last = self.known_splits() or ("none",)
        return DataError(f"{owner} has the splits {', '.join(first)}{' and ' if first else ''}{last}, not {split!r}")


class SceneSource(DataSource):
    """A source of images that are rendered scenes; each can be had with another texture on the paint.

    The ids of a split are those of its scenes: image i of `load` shows scene i with a paint of the source.
    """

    @abstractmethod
    def scenes(self, split: str, ids: Sequence[int], ss: int = 2) -> Maps:
        """The maps of some scenes, in the order of the ids, for siegebench.render.compose.

        Args:
            ss: samples along each side of a pixel; 2 for the steps of an attack, 4 for scores.

        Raises:
            DataError: for an unknown split, and for ids that it does not have.
        """

    @abstractmethod
    def views(self, split: str, ids: Sequence[int]) -> Tensor:
        """Where the camera of some scenes is, float32 [n, 3]: azimuth in [0, 360) and pitch in degrees, metres away.

        Raises:
            DataError: as `scenes` does.
        """

    @abstractmethod
    def vehicles(self) -> tuple[int, ...]:
        """The labels of vehicles. A texture hides a vehicle if the answer is none of them."""


class ModelSource(Entry):
    """A source of networks: an architecture, with published weights or a recipe to train it."""

    @abstractmethod
    def build(self, *, num_classes: int, size: Size) -> Classifier:
        """The network for images of this size, with published weights if it has any.

        A source whose networks also take images of another number of channels has one more argument,
        `channels: int = 3`. Without it, grey images are refused before anything is computed.

        Args:
            size: the side of square images, else (height, width).

        Raises:
            ModelError: when weights are missing, corrupt, not finite or of another shape.
        """

    @final
    def built(self, num_classes: int, size: Size, channels: int) -> Classifier:
        """The network for images with this number of channels.

        Raises:
            ModelError: as `build` does; when the images are not RGB and `build` has no argument `channels`.
        """
        if channels == IMAGE.channels:
            return self.build(num_classes=num_classes, size=size)
        if "channels" not in signature(self.build).parameters:
            raise ModelError(
                f"{getattr(self, '_name', type(self).__name__)} takes images with 3 channels, these have {channels}; "
                "use a network of timm, or set `channels: 3` of the data set"
            )
        return self.build(num_classes=num_classes, size=size, channels=channels)  # type: ignore[call-arg]

    @final
    def build_for(self, images: ImageSet) -> Classifier:
        """The network for the classes, the size, the channels and the kind of a data set.

        Raises:
            ModelError: as `built` does.
        """
        told = images.kind.name == IMAGE.name or "channels" in signature(self.build).parameters
        channels = images.shape[0] if told else IMAGE.channels  # of other kinds only who asks is told
        network = self.built(images.num_classes, images.size, channels)
        network.kind = images.kind
        return network

    def pretrained(self) -> bool:
        """Whether `build` returns trained weights; otherwise the harness trains with `recipe`."""
        return False

    def train(self, model: Classifier, data: ImageSet, seed: int) -> None:
        """Train a network that `build` returned, in place; called if there are no published weights.

        By default the one training loop, with `recipe`. A source overrides it whose networks take more than weights
        from the training set, or learn by another loss.

        Args:
            seed: of all random numbers.
        """
        from siegebench.train import Recipe, train  # which imports the types of its own fields from here

        train(model, data, getattr(self, "recipe", None) or Recipe(), seed)


class ObjectDetectorSource(ModelSource):
    """A source of object detectors that find vehicles: with published weights, or trained on rendered scenes.

    It stands wherever a model is expected, for data with the classes other and vehicle.
    """

    @abstractmethod
    def detector(self, *, size: Size) -> ObjectDetector:
        """The detector for images of this size, with published weights if it has any.

        Args:
            size: the side of square images, else (height, width).

        Raises:
            ModelError: when weights are missing, corrupt, not finite or of another shape.
        """

    @final
    def build(self, *, num_classes: int, size: Size) -> ObjectDetector:
        """The detector, for data with two classes.

        Raises:
            ModelError: as `detector` does; for other numbers of classes.
        """
        if num_classes != ObjectDetector.num_classes:
            raise ModelError(
                f"{self._title} answers with the classes other and vehicle, the data has {num_classes} classes; "
                "vehicle_scenes has two with `task: vehicle`"
            )
        return self.detector(size=size)

    @final
    def fit(self, detector: Classifier, source: DataSource, images: ImageSet, seed: int) -> None:
        """Train a detector in place, on the scenes that some images of a source show.

        Raises:
            NotApplicable: when they are no rendered scenes, or the source only has published weights.
        """
        if not isinstance(source, SceneSource) or not isinstance(detector, ObjectDetector):
            raise NotApplicable(
                f"{self._title} is trained on boxes, and {images.name} has none; use vehicle_scenes, or a detector "
                "with published weights"
            )
        self.learn(detector, source, images.ids.tolist(), seed)

    def learn(self, detector: ObjectDetector, scenes: SceneSource, ids: Sequence[int], seed: int) -> None:
        """Train a detector that `detector` returned, in place; called if there are no published weights.

        Args:
            ids: of the scenes of the split `train` on which it may be trained.
            seed: of all random numbers.
        """
        raise NotApplicable(f"{self._title} cannot be trained here")

    @property
    def _title(self) -> str:
        return str(getattr(self, "_name", type(self).__name__))
