"""Shared by leaks that match gradients: the distance to the released gradient, starts, and labels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from siegebench.classifier import Classifier
from siegebench.errors import NotApplicable
from siegebench.per_image import flat
from siegebench.types import Shared

Distance = Callable[[Tensor, Tensor], Tensor]  # images [k, n, C, H, W] and labels [k, n, classes] to [k]


def distance(shared: Shared, restarts: int, *, cosine: bool) -> Distance:
    """How far the gradients of candidates are from the released ones; candidates are restart-major, k = restarts * m.

    Only entries that the rule shows are compared. The squared distance of directions is taken if the rule rescales.

    Args:
        cosine: 1 - cos of the two, instead of the squared distance.
    """
    target = flat(shared.released).repeat(restarts, 1)
    shown = flat(shared.sharing.shown(shared.released)).repeat(restarts, 1)
    target = torch.where(shown, target, 0.0)
    unit = target / target.norm(dim=1, keepdim=True).clamp(min=1e-12)

    def of(x: Tensor, y: Tensor) -> Tensor:
        g = torch.where(shown, flat(shared.gradients(x, y)), 0.0)
        if not (cosine or shared.sharing.rescales):
            return (g - target).square().sum(dim=1)
        length = g.square().sum(dim=1, keepdim=True).clamp(min=1e-24).sqrt()
        cos = (g / length * unit).sum(dim=1)
        return 1 - cos if cosine else 2 - 2 * cos

    return of


def total_variation(x: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels, for images [k, n, C, H, W]: [k]."""
    down = (x[..., 1:, :] - x[..., :-1, :]).abs().flatten(1).mean(dim=1)
    return down + (x[..., 1:] - x[..., :-1]).abs().flatten(1).mean(dim=1)


def best_of(restarts: int, found: Tensor, loss: Tensor) -> Tensor:
    """For each client, the point of the restart with the smallest loss; points [restarts * m, ...]."""
    loss = torch.nan_to_num(loss, nan=torch.inf).view(restarts, -1)
    chosen = loss.argmin(dim=0)
    return found.view(restarts, loss.shape[1], *found.shape[1:])[chosen, torch.arange(loss.shape[1])]


def last_linear(model: Classifier) -> tuple[str, nn.Linear]:
    """(name, layer) of the last linear layer.

    Raises:
        NotApplicable: when there is none.
    """
    found = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    if not found or found[-1][1].out_features != model.num_classes:
        raise NotApplicable(f"{model.card.name} does not end in a linear layer with an output for each class")
    return found[-1]


def labels_of(shared: Shared) -> Tensor:
    """The n classes of each client, as probabilities [m, n, classes]: those whose outputs have the smallest gradients.

    dL/db_k = mean_i (p_ik - y_ik) is negative for the class of a single image alone (Zhao, Mopuri, Bilen, "iDLG",
    arXiv 2001.02610). Without a bias, or where it is not shown, the rows of the weights are summed: features after a
    ReLU or sigmoid are not negative. Two images of one class can be distinguished from a single one only if there are
    no images of other classes.
    """
    name, layer = last_linear(shared.model)
    bias, weight = shared.released.get(f"{name}.bias"), shared.released[f"{name}.weight"]
    score = weight.sum(dim=2) if layer.bias is None or bias is None or not bool(bias.any()) else bias
    order = score.argsort(dim=1)[:, torch.arange(shared.n) % shared.model.num_classes]
    return torch.nn.functional.one_hot(order, shared.model.num_classes).to(weight)
