"""Whether a victim sees a vehicle: the one place where its answer becomes scores.

A classifier gives one score for an image, the sum of its softmax over the labels of vehicles. An object detector gives
one for each of its boxes. A vehicle counts as seen by a classifier if the answer is a label of vehicles, and by a
detector if a box of score 1/2 or more overlaps the vehicle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from siegebench.object_detector import OVERLAP, Found, ObjectDetector, iou, kept, logit, matched, noting

NOTHING = -30.0  # logit of a candidate that does not count
SURE = 0.5  # score from which a box is a detection


@dataclass(frozen=True, eq=False)
class Sighting:
    """Scores for "vehicle", as logits, so that neither s near 1 nor 1 - s near 0 lose their digits.

    Attributes:
        logit: [n, K], log(s / (1 - s)) of each of K candidates; K = 1 for a classifier.
    """

    logit: Tensor

    @property
    def score(self) -> Tensor:
        """s in [0, 1], [n, K]."""
        return self.logit.sigmoid()

    @property
    def hidden(self) -> Tensor:
        """log(1 - s), [n, K]: 0 where nothing is seen."""
        return F.logsigmoid(-self.logit)


def detects(model: Classifier) -> bool:
    """Whether there is an object detector in a model, defended or not."""
    return any(isinstance(m, ObjectDetector) for m in model.modules())


def sighting(
    model: Classifier, call: Callable[[], Tensor], vehicles: tuple[int, ...], boxes: Tensor, *, strict: bool
) -> Sighting:
    """The scores of a victim while it is called.

    Args:
        call: one call of the model, or of an oracle with it; returns the logits [n, classes].
        vehicles: labels of vehicles.
        boxes: of the vehicles, [n, 4] in pixels of the images.
        strict: boxes of a detector count only where they overlap the vehicle.

    Raises:
        NotApplicable: when a defense does not ask its detector about the n images in each pass.
    """
    if not detects(model):
        return of_logits(call(), vehicles)
    with noting(model) as notes:
        z = call()
    found = joined(notes, len(z))
    z_found = logit(found.scores)
    if strict:
        right = iou(found.boxes.detach(), boxes[:, None].to(found.boxes))[..., 0] >= OVERLAP
        z_found = z_found.masked_fill(~right, NOTHING)
    return Sighting(z_found + 0 * z[:, :1])  # so that a gradient is booked as one of the model


def joined(notes: Sequence[Found], n: int) -> Found:
    """The candidates of all passes on n images, beside one another.

    Raises:
        NotApplicable: when a pass had another number of images.
    """
    if not notes or any(len(found) != n for found in notes):
        passes = ", ".join(str(len(found)) for found in notes) or "none"
        raise NotApplicable(f"the detector was called on {passes} images for {n}; its boxes are not those of one pass")
    return Found(torch.cat([f.boxes for f in notes], dim=1), torch.cat([f.scores for f in notes], dim=1))


def of_logits(z: Tensor, vehicles: tuple[int, ...]) -> Sighting:
    """The sighting of a classifier, from its logits [n, classes]."""
    own = torch.zeros(z.shape[1], dtype=torch.bool, device=z.device)
    own[list(vehicles)] = True
    return Sighting((z[:, own].logsumexp(dim=1) - z[:, ~own].logsumexp(dim=1))[:, None])


@torch.no_grad()
def seen(
    model: Classifier, x: Tensor, vehicles: tuple[int, ...], boxes: Tensor, passes: Sequence[Draws | None]
) -> tuple[Tensor, Tensor, Found | None]:
    """(whether each image is seen to show a vehicle in each pass, bool [k, n]; the mean score, [n]; detections).

    In an image without a vehicle any answer of a vehicle, and any detection, counts.

    Args:
        boxes: [n, 4] in pixels; zeros where no vehicle is.
        passes: the random numbers of each of k passes.

    Returns:
        The detections of the first pass after non-maximum suppression; None for a classifier.
    """
    hits, scores, first = [], [], None
    empty = (boxes[:, 2] <= boxes[:, 0]).to(x.device)
    for draws in passes:
        if not detects(model):
            z = model(x, draws)
            hit = torch.isin(z.argmax(dim=1), torch.tensor(vehicles, device=z.device)) & torch.isfinite(z).all(dim=1)
            score = of_logits(z, vehicles).score[:, 0]
        else:
            with noting(model) as notes:
                model(x, draws)
            found = joined(notes, len(x))
            first = first or kept(found)
            score = torch.where(empty, found.best, matched(found, boxes))
            hit = score >= SURE
        hits.append(hit)
        scores.append(score)
    return torch.stack(hits), torch.stack(scores).mean(dim=0), first
