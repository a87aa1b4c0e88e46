"""ObjectDetector: a model that finds vehicles, as a classifier; boxes, non-maximum suppression, average precision."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.draws import Draws
from siegebench.errors import NotApplicable

TINY = 1e-6  # keeps the logits of the scores 0 and 1 finite
LEAST = 1e-3  # boxes with lower scores are not kept
OVERLAP = 0.5  # intersection over union from which a box is right


@dataclass(frozen=True, eq=False)
class Found:
    """The boxes that a detector found in n images, K in each.

    Attributes:
        boxes: [n, K, 4], left, top, right, bottom in pixels of the image.
        scores: [n, K] in [0, 1]; 0 where an image has fewer boxes than K.
    """

    boxes: Tensor
    scores: Tensor

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: Tensor | slice) -> Found:
        """What was found in some of the images."""
        return Found(self.boxes[index], self.scores[index])

    @property
    def best(self) -> Tensor:
        """The largest score of each image, [n]; 0 without boxes."""
        return F.pad(self.scores, (0, 1)).amax(dim=1)

    def detach(self) -> Found:
        return Found(self.boxes.detach(), self.scores.detach())

    def cpu(self) -> Found:
        return Found(self.boxes.cpu(), self.scores.cpu())

    @staticmethod
    def join(parts: Sequence[Found]) -> Found:
        """What was found in all images of several parts."""
        most = max(part.scores.shape[1] for part in parts)
        short = [most - part.scores.shape[1] for part in parts]
        return Found(
            torch.cat([F.pad(part.boxes, (0, 0, 0, k)) for part, k in zip(parts, short, strict=True)]),
            torch.cat([F.pad(part.scores, (0, k)) for part, k in zip(parts, short, strict=True)]),
        )


class ObjectDetector(Classifier):
    """Finds vehicles. As a classifier it has the classes other and vehicle, by the largest score of a box.

    So every defense that wraps a classifier applies to it. Subclasses write `find`.
    """

    num_classes = 2

    @abstractmethod
    def find(self, x: Tensor) -> Found:
        """Boxes of vehicles and their scores before non-maximum suppression, differentiable.

        Args:
            x: RGB images in [0, 1] of any size, [n, 3, H, W].
        """

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        """Logits [n, 2] of other and vehicle: (-z/2, z/2) with z = log s - log(1 - s) of the largest score s."""
        found = self.find(x)
        with _LOCK:
            for notes in _NOTED.get(id(self), ()):
                notes.append(found)
        return logits(found.best)

    def features(self, x: Tensor) -> Tensor:
        raise NotApplicable(f"{self.card.name} is an object detector; it has no last linear layer")

    def fresh(self, seed: int) -> ObjectDetector:
        raise NotApplicable(f"{self.card.name} cannot be retrained from scratch")


def logit(scores: Tensor) -> Tensor:
    """log(s / (1 - s)), finite for 0 and 1; not clamped, which would end the gradient of sure answers."""
    return (scores + TINY).log() - (1 - scores + TINY).log()


def logits(scores: Tensor) -> Tensor:
    """The logits [n, 2] of other and vehicle for the scores [n] of vehicles; finite for 0 and 1."""
    z = logit(scores)
    return torch.stack([-z / 2, z / 2], dim=1)


# ------------------------------------------------------------------------------------------- through a defended model

_NOTED: dict[int, list[list[Found]]] = {}  # by detector; not an attribute, which would be state of the model
_LOCK = threading.Lock()


def detector_in(model: Classifier) -> ObjectDetector:
    """The object detector in a defended one.

    Raises:
        NotApplicable: when it contains none, or several.
    """
    inside = [m for m in model.modules() if isinstance(m, ObjectDetector)]
    if len(inside) != 1:
        raise NotApplicable(f"{model.card.name} contains {len(inside)} object detectors; expected one")
    return inside[0]


@contextmanager
def noting(model: Classifier) -> Iterator[list[Found]]:
    """Note what the object detector in a model finds, one `Found` for each of its passes, while the model is called.

    Boxes are in pixels of the images that the detector is given: a defense that moves the image moves them too.

    >>> with noting(defended) as notes:
    ...     defended(x)
    >>> notes[-1].scores

    Raises:
        NotApplicable: when the model contains no object detector, or several.
    """
    notes: list[Found] = []
    key = id(detector_in(model))
    with _LOCK:
        _NOTED.setdefault(key, []).append(notes)
    try:
        yield notes
    finally:
        with _LOCK:
            left = [other for other in _NOTED.pop(key) if other is not notes]
            if left:
                _NOTED[key] = left


def find(model: Classifier, x: Tensor, draws: Draws | None = None, *, backward: bool = False) -> Found:
    """What a defended detector finds in images [n, 3, H, W].

    Args:
        backward: through the model's `backward_model` (BPDA).

    Raises:
        NotApplicable: when the defense does not call the detector once with n images.
    """
    with noting(model) as notes:
        (model.backward_model if backward else model)(x, draws)
    if [len(found) for found in notes] != [len(x)]:
        passes = ", ".join(str(len(found)) for found in notes) or "none"
        raise NotApplicable(
            f"{model.card.name} calls the detector on {passes} images for {len(x)}; its boxes are not those of one pass"
        )
    return notes[0]


# --------------------------------------------------------------------------------------------------------------- boxes


def area(boxes: Tensor) -> Tensor:
    """Of boxes [..., 4]; 0 for empty ones."""
    size = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return size[..., 0] * size[..., 1]


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes [..., K, 4] and [..., T, 4], [..., K, T]; 0 for empty boxes."""
    low = torch.maximum(a[..., :, None, :2], b[..., None, :, :2])
    high = torch.minimum(a[..., :, None, 2:], b[..., None, :, 2:])
    shared = area(torch.cat([low, high], dim=-1))
    union = area(a)[..., :, None] + area(b)[..., None, :] - shared
    return shared / union.clamp(min=torch.finfo(union.dtype).tiny)


def kept(found: Found, overlap: float = 0.5, least: float = LEAST, most: int = 100) -> Found:
    """The boxes after non-maximum suppression, the best first; not differentiable.

    Args:
        overlap: a box that overlaps a better one of its image by more (intersection over union) is dropped.
        least: boxes with a lower score are dropped.
        most: boxes of an image.
    """
    from torchvision.ops import batched_nms  # takes a second to import

    boxes, scores = found.boxes.detach(), found.scores.detach()
    image, box = (scores >= max(least, torch.finfo(scores.dtype).tiny)).nonzero().unbind(1)
    # in order of the score, and ties in the order of the detector
    chosen = batched_nms(boxes[image, box].float(), scores[image, box].float(), image, overlap)
    image, box = image[chosen], box[chosen]
    order = image.argsort(stable=True)
    image, box = image[order], box[order]
    counts = image.bincount(minlength=len(scores))
    rank = torch.arange(len(image), device=image.device) - (counts.cumsum(0) - counts)[image]
    inside = rank < most
    image, box, rank = image[inside], box[inside], rank[inside]
    width = min(most, int(counts.max())) if len(counts) else 0
    out = Found(boxes.new_zeros(len(scores), width, 4), scores.new_zeros(len(scores), width))
    out.boxes[image, rank], out.scores[image, rank] = boxes[image, box], scores[image, box]
    return out


def matched(found: Found, truth: Tensor, overlap: float = OVERLAP) -> Tensor:
    """The best score of a box that is right, [n]; 0 if none is. Differentiable in the scores.

    Args:
        truth: the true box of each image, [n, 4].
        overlap: intersection over union with the true box from which a box is right.
    """
    right = iou(found.boxes.detach(), truth[:, None].to(found.boxes))[..., 0] >= overlap
    return F.pad(found.scores * right, (0, 1)).amax(dim=1)


def average_precision(found: Found, truth: Tensor, overlap: float = OVERLAP) -> float:
    """Area under the curve of precision over recall, with all-point interpolation; NaN without a true box.

    A box belongs to the true box of its image that it overlaps most. It is right if the overlap is large enough and no
    better box belongs to the same true box.

    Args:
        found: after non-maximum suppression (`kept`).
        truth: the true boxes of each image, [n, 4] or [n, T, 4]; empty boxes (zeros) are none.
        overlap: intersection over union from which a box is right.
    """
    truth = (truth[:, None] if truth.dim() == 2 else truth).to(found.boxes)
    real = int((area(truth) > 0).sum())
    if not real:
        return float("nan")
    closest, owner = iou(found.boxes, truth).max(dim=2)
    owner = owner + torch.arange(len(truth), device=owner.device)[:, None] * truth.shape[1]
    order = found.scores.flatten().argsort(descending=True, stable=True)
    order = order[found.scores.flatten()[order] > 0]
    owner, right = owner.flatten()[order], (closest >= overlap).flatten()[order]
    place = torch.arange(len(order), device=order.device)
    first = torch.full((truth.shape[0] * truth.shape[1],), len(order), device=order.device)
    first = first.scatter_reduce(0, owner[right], place[right], "amin")
    hits = (right & (first[owner] == place)).double().cumsum(0)
    precision = hits / (place + 1)
    envelope = precision.flip(0).cummax(0).values.flip(0)
    steps = hits.diff(prepend=hits.new_zeros(1)) / real
    return float((envelope * steps).sum())
