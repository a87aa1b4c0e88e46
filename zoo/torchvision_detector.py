"""The object detectors of torchvision for COCO, with weights that the user has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from siegebench.checkpoints import load_into, source_of
from siegebench.classifier import ModelCard
from siegebench.data import Size
from siegebench.errors import ModelError
from siegebench.object_detector import LEAST, Found, ObjectDetector
from siegebench.types import Class, Count, ObjectDetectorSource
from siegebench.weights import weights_hash

from ._files import check_name, find_weights, sha256

LABELS = (
    91  # of torchvision: background 0, person 1, bicycle 2, car 3, motorcycle 4, airplane 5, bus 6, train 7, truck 8
)
Architecture = Literal[
    "ssdlite320_mobilenet_v3_large", "ssd300_vgg16", "fasterrcnn_mobilenet_v3_large_320_fpn",
    "fasterrcnn_mobilenet_v3_large_fpn", "fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2", "fcos_resnet50_fpn",
    "retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2",
]  # fmt: skip


class TorchvisionObjectDetector(ObjectDetector):
    """A detector of torchvision, without its non-maximum suppression; boxes of the vehicle classes."""

    def __init__(self, net: nn.Module, vehicles: tuple[int, ...], most: int, card: ModelCard) -> None:
        super().__init__()
        self.net, self.vehicles, self.card = net, vehicles, card
        head: Any = getattr(net, "roi_heads", net)
        head.score_thresh, head.nms_thresh, head.detections_per_img = LEAST, 1.0, most

    def find(self, x: Tensor) -> Found:
        found = []
        for one in self.net(list(x)):  # one dict for each image, with as many boxes as it has
            mine = torch.isin(one["labels"], torch.tensor(self.vehicles, device=x.device))
            found.append(Found(one["boxes"][mine][None], one["scores"][mine][None]))
        return Found.join(found)


@dataclass(frozen=True, kw_only=True)
class TorchvisionDetector(ObjectDetectorSource):
    """A detector of torchvision, trained on COCO (BSD-3-Clause). Nothing is downloaded.

    Boxes with scores below 0.001 are left out, and non-maximum suppression is done by the caller, so that an attack
    has a gradient for all boxes. Images are resized as torchvision does it, to up to 1333 pixels: the names with 320
    or 300 are much faster on a CPU.

    Nothing is random.

    Attributes:
        architecture: as torchvision names it.
        checkpoint: the weights: a path, or a file below `weights/` in the folder named by SIEGEBENCH_DATA; by default
            the file that torchvision has downloaded to its cache.
        vehicles: the labels that count as vehicles, as torchvision numbers them: car 3, bus 6 and truck 8.
        boxes: at most so many of an image, the best. Boxes of other classes count too.
    """

    local: ClassVar[tuple[str, ...]] = ("checkpoint",)

    architecture: Architecture = "ssdlite320_mobilenet_v3_large"
    checkpoint: str | None = None
    vehicles: tuple[Class, ...] = (3, 6, 8)
    boxes: Count = 1000

    def __post_init__(self) -> None:
        if not self.vehicles or min(self.vehicles) < 1 or max(self.vehicles) >= LABELS:
            raise ValueError(f"vehicles: expected labels of COCO, 1 to {LABELS - 1}, found {list(self.vehicles)}")

    def pretrained(self) -> bool:
        return True

    def identity(self) -> dict[str, Any]:
        return {"sha256": sha256(self.weights())}

    def weights(self) -> Path:
        """The file with the weights.

        Raises:
            ModelError: when there is none, with what to type.
        """
        if self.checkpoint is not None:
            return find_weights(self.checkpoint)
        from torchvision.models import get_model_weights

        name = str(get_model_weights(self.architecture)["DEFAULT"].url).rpartition("/")[2]
        path = Path(torch.hub.get_dir()) / "checkpoints" / name
        if not path.is_file():
            get = f"import torchvision; torchvision.models.get_model('{self.architecture}', weights='DEFAULT')"
            raise ModelError(
                f'{path}: no such file; give `checkpoint: PATH`, or let torchvision download it: python -c "{get}"'
            )
        check_name(path)
        return path

    def detector(self, *, size: Size) -> TorchvisionObjectDetector:
        from torchvision.models import get_model

        path = self.weights()
        net = get_model(self.architecture, weights=None, weights_backbone=None, num_classes=LABELS)
        fitted = load_into(net, path, normalised=((0.0,) * 3, (1.0,) * 3))
        card = ModelCard(
            name="torchvision_detector", architecture=self.architecture, dataset="COCO",
            source=source_of(path, fitted), weights=weights_hash(net.state_dict()), licence="BSD-3-Clause",
        )  # fmt: skip
        return TorchvisionObjectDetector(net, self.vehicles, self.boxes, card).eval()
