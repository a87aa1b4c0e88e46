"""Targets: the target class of each image, and how often it is predicted without an attack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from siegebench import ops
from siegebench.cells import Cell, digest
from siegebench.classifier import Classifier
from siegebench.data import ImageSet
from siegebench.draws import Draws, derive_seed
from siegebench.errors import ConfigError
from siegebench.prepare import in_batches
from siegebench.threat import Rule, ThreatModel
from siegebench.tracks.judging import fresh_passes, majority, right
from siegebench.workspace import Workspace


@dataclass(frozen=True)
class Aim:
    """The target classes of the images of a cell, on the CPU.

    Attributes:
        goal: target class, int64 [N].
        clean: whether the clean image is classified as the target, bool [N].
        noise: the same for the image under random noise of the norm and size of the threat, bool [N].
    """

    goal: Tensor
    clean: Tensor
    noise: Tensor


def goals(target: Rule | int, y: Tensor, classes: int, draws: Draws, logits: Callable[[], Tensor]) -> Tensor:
    """The target class of each image, int64 [n].

    Args:
        y: int64 [n], true labels.
        draws: streams of the images, for `random`.
        logits: returns the victim's logits of the clean images, [n, classes]; called for `least_likely` only.

    Raises:
        ConfigError: when there is no such class.
    """
    if target == "next":
        return (y + 1) % classes
    if target == "random":
        return (y + 1 + draws.integers(classes - 1, purpose="target")) % classes
    if target == "least_likely":
        return logits().argmin(dim=1)
    if target >= classes:
        raise ConfigError(f"class {target} does not exist, the model has 0..{classes - 1}")
    return torch.full_like(y, target)


def aim(ws: Workspace, cell: Cell, victim: Classifier, data: ImageSet, threat: ThreatModel) -> Aim | None:
    """The target classes of a cell, None for an untargeted threat; computed once per victim."""
    target = threat.target
    if target is None:
        return None

    def make() -> Aim:
        streams = Draws(derive_seed(cell.seed, "target"), data.ids)

        def part(at: slice) -> tuple[Tensor, ...]:
            x, y, draws = ws.pixels(data, at), data.labels[at].to(ws.device), streams[at].to(ws.device)
            z = fresh_passes(victim, x, draws, "clean")
            goal = goals(target, y, victim.num_classes, draws, lambda: z.mean(dim=0))
            noisy = fresh_passes(victim, noise(x, threat, draws), draws, "noise")
            return goal.cpu(), majority(right(z, goal)).cpu(), majority(right(noisy, goal)).cpu()

        return Aim(*map(torch.cat, zip(*in_batches(part, len(data), ws.batch(data.stored)), strict=True)))

    key = ("aim", digest([cell.model, cell.defense, cell.certifier, cell.threat]), cell.data["digest"], cell.seed)
    found: Aim = ws.remember(key, make)
    return found


def noise(x: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
    """The images under random noise as large as the threat allows: signs in Linf, a direction in L2 and L1, and in l0
    pixels of random colours."""
    shape = tuple(x.shape[1:])
    if threat.norm == "l0":
        kept = int(threat.eps * x.shape[2] * x.shape[3] + 1e-6)
        rank = draws.uniform((x.shape[2] * x.shape[3],), purpose="pixels").argsort(dim=1).argsort(dim=1)
        mask = (rank < kept).view(len(x), 1, *shape[1:])
        return torch.where(mask, draws.uniform(shape, purpose="colours").to(x.dtype), x)
    if threat.norm == "linf":
        u = draws.sign(shape, purpose="noise")
    else:
        u = draws.normal(shape, purpose="noise")
        u = u / ops.over(ops.size(u, threat.norm), u)
    return threat.project(x + threat.eps * u.to(x.dtype), x)
