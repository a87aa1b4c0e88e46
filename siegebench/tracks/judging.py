"""Scoring of predictions: fresh forward passes, majority votes of randomised models, clean predictions."""

from __future__ import annotations

import torch
from torch import Tensor

from siegebench import ops
from siegebench.cells import Cell, Flag, digest
from siegebench.classifier import Classifier
from siegebench.data import ImageSet
from siegebench.draws import Draws, derive_seed
from siegebench.prepare import at_once, in_batches, slices
from siegebench.workspace import Workspace

BLIND = 0.5  # an attack is flagged if a larger fraction of its gradients is exactly zero
PASSES = 9  # forward passes of a randomised model per scored image; the majority decides


@torch.no_grad()
def fresh_passes(model: Classifier, x: Tensor, draws: Draws, purpose: str) -> Tensor:
    """Logits of k new forward passes, [k, n, classes]: k = 9 for a randomised model, 1 otherwise."""
    parts = slices(len(x), at_once(x, x.device))
    if not model.randomized:
        return torch.cat([model(x[at]) for at in parts])[None]
    fresh = draws.child("score", purpose)
    return torch.stack([torch.cat([model(x[at], fresh[at].at(i)) for at in parts]) for i in range(PASSES)])


def right(z: Tensor, y: Tensor) -> Tensor:
    """Whether each pass is correctly classified, bool [k, n]. Non-finite logits count as misclassified."""
    return (z.argmax(dim=2) == y) & torch.isfinite(z).all(dim=2)


def majority(hits: Tensor) -> Tensor:
    """Correctly classified in more than half of the passes, bool [n]."""
    return hits.double().mean(dim=0) > 0.5


def correct(ws: Workspace, model: Classifier, x: Tensor, y: Tensor, draws: Draws, purpose: str) -> Tensor:
    """Which images the model classifies correctly, bool [n] on the CPU; computed in batches."""

    def part(at: slice) -> Tensor:
        seen, own = x[at].to(ws.device, ops.precision(x, ws.dtype)), y[at].to(ws.device)
        return majority(right(fresh_passes(model, seen, draws[at].to(ws.device), purpose), own)).cpu()

    return torch.cat(in_batches(part, len(x), ws.batch(x))) if len(x) else torch.zeros(0, dtype=torch.bool)


def clean_outcome(ws: Workspace, cell: Cell, victim: Classifier, data: ImageSet) -> Tensor:
    """Which clean images the victim classifies correctly, bool [N] on the CPU; computed once per victim."""

    def make() -> Tensor:
        draws = Draws(derive_seed(cell.seed, "clean"), data.ids)

        def part(at: slice) -> Tensor:
            x, y = ws.pixels(data, at), data.labels[at].to(ws.device)
            return majority(right(fresh_passes(victim, x, draws[at].to(ws.device), "clean"), y)).cpu()

        return torch.cat(in_batches(part, len(data), ws.batch(data.stored)))

    return ws.remember(
        ("clean", digest([cell.model, cell.defense, cell.certifier]), cell.data["digest"], cell.seed), make
    )


def gradient_flags(model: str, backwards: int, blind: int, undefined: int) -> list[Flag]:
    """What is wrong with the gradients that an attack received.

    Args:
        model: its name.
        backwards: gradients received; of them `blind` exactly zero, `undefined` with NaN or infinite values.
    """
    out = []
    if undefined:
        evidence = (
            f"{undefined} of {backwards} gradients of {model} had NaN or infinite values, which became zero: images "
            "that survived prove little. Look for a square root, a logarithm or a division at 0"
        )
        out.append(Flag("nan_gradients", "flag", evidence))
    if blind > BLIND * backwards:
        evidence = (
            f"{blind} of {backwards} gradients of {model} were exactly zero: images that survived prove nothing. "
            "Look for no_grad, detach, rounding or integer layers in forward, or try a score attack such as square"
        )
        out.append(Flag("blind_attack", "flag", evidence))
    return out
