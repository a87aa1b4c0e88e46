"""Features of a training set, for detectors of poisoned training images."""

from __future__ import annotations

import torch
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.data import ImageSet


@torch.no_grad()
def features(model: Classifier, data: ImageSet, batch: int = 500) -> Tensor:
    """Penultimate features of all images, float64 [N, d] on the CPU."""
    device, dtype = next(model.parameters()).device, next(model.parameters()).dtype
    index = torch.arange(len(data)).split(batch)
    return torch.cat([model.features(data.pixels(i, dtype).to(device)).double().cpu() for i in index])


def members(data: ImageSet, c: int) -> Tensor:
    """Indices of the images labelled c, by id: results must not depend on the order of the set."""
    index = (data.labels == c).nonzero().squeeze(1)
    return index[data.ids[index].argsort()]
