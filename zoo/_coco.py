"""Object detectors with the 80 classes of COCO, whose weights are in a file of the user."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from siegebench.errors import ModelError
from siegebench.types import Class, ObjectDetectorSource

from ._files import checkpoint_identity, find_weights

CLASSES = 80  # person 0, bicycle 1, car 2, motorbike 3, aeroplane 4, bus 5, train 6, truck 7, boat 8, ...
VEHICLES = (2, 5, 7)


@dataclass(frozen=True, kw_only=True)
class CocoDetector(ObjectDetectorSource):
    """A detector with published weights.

    Attributes:
        checkpoint: the weights: a path, or a file below `weights/` in the folder named by SIEGEBENCH_DATA.
        vehicles: the classes that count as vehicles, of COCO's 80: car 2, bus 5 and truck 7.
    """

    local: ClassVar[tuple[str, ...]] = ("checkpoint",)

    checkpoint: str
    vehicles: tuple[Class, ...] = VEHICLES

    def __post_init__(self) -> None:
        check_vehicles(self.vehicles)

    def pretrained(self) -> bool:
        return True

    def identity(self) -> dict[str, Any]:
        self.weights()
        return checkpoint_identity(self.checkpoint, False, None)

    def weights(self) -> Path:
        """The file.

        Raises:
            ModelError: when there is none.
        """
        try:
            return find_weights(self.checkpoint)
        except ModelError as error:
            raise ModelError(str(error).replace(", or `checkpoint: null` to train", "")) from None


def check_vehicles(classes: tuple[int, ...]) -> None:
    """Refuse classes that COCO does not have.

    Raises:
        ValueError: naming the parameter.
    """
    if not classes or max(classes) >= CLASSES:
        raise ValueError(f"vehicles: expected classes of COCO, 0 to {CLASSES - 1}, found {list(classes)}")


def resized(x: Tensor, height: int, width: int) -> Tensor:
    """Images of another size, bilinear, with a filter against aliasing."""
    if x.shape[2:] == (height, width):
        return x
    return F.interpolate(x, (height, width), mode="bilinear", antialias=True, align_corners=False)
