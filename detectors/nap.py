"""NAP: activation patterns that the images of a class share; an input that violates that of its label is suspicious."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from siegebench.classifier import Classifier
from siegebench.data import Granted
from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from siegebench.layers import batches
from siegebench.types import Count, InputDetector, Scorer, Share

from ._fitting import logits, some


@dataclass(frozen=True, kw_only=True)
class NAP(InputDetector):
    """Fraction of the neurons of the predicted label's pattern that the input violates (Geng et al., ICML 2023).

    The pattern of class c: a ReLU with pre-activation a belongs to it as active if a > 0 for at least the fraction
    `delta` of the training images labelled c, as inactive if a > 0 for at most 1 - delta of them. The given labels
    are used, so poisoned images contribute to the pattern of their wrong label. A class without images, or without a
    fixed neuron, has no pattern, and its score is 0.

    Random: the training images, if there are more than `images`. Cost: one forward pass per image. Attacks get the
    gradient of the mean violation: max(0, -a) for a neuron that should be active, max(0, a) for one that should not.

    Attributes:
        delta: how common a state must be, above 0.5.
        layers: the last so many ReLU modules in the order of the forward pass.
        images: training images that patterns are taken from.

    Differs from the paper: there the patterns are specifications for a verifier; using them as a detector is our idea.

    Raises:
        NotApplicable: for networks without nn.ReLU modules.
    """

    # half of the images that the target's pattern is taken from are poisoned
    poisons: ClassVar[tuple[dict[str, Any], ...]] = ({"name": "badnets"},)

    delta: Share = 0.95
    layers: Count = 3
    images: Count = 4000

    def fit(self, model: Classifier, data: Granted, draws: Draws) -> Scorer:
        if not 0.5 < self.delta <= 1:
            raise NotApplicable(
                f"nap: delta is {self.delta:g}, and a neuron would be active and inactive; set 0.5 < delta <= 1"
            )
        x, y = some(data.train, self.images, draws)
        p = next(model.parameters())
        names = _relus(model, x[:2].to(p))[-self.layers :]
        if not names:
            raise NotApplicable(
                f"nap reads the states of ReLUs; {model.card.name} has no nn.ReLU module: it needs some"
            )
        total = torch.bincount(y, minlength=model.num_classes)
        counts: Tensor | None = None
        with torch.no_grad():
            for i in batches(x, p.device):
                a, _ = _activations(model, names, x[i].to(p), Draws(0, i.to(p.device)))
                on = (a > 0).float().cpu()
                counts = on.new_zeros(model.num_classes, on.shape[1]) if counts is None else counts
                counts.index_add_(0, y[i], on)
        assert counts is not None
        least = (self.delta * total).ceil()[:, None]
        present = total[:, None] > 0
        sign = torch.zeros_like(counts)  # 1: must be active, -1: must be inactive, 0: not bound
        sign[(counts >= least) & present] = 1
        sign[(total[:, None] - counts >= least) & present] = -1

        def score(x: Tensor, draws: Draws) -> Tensor:
            a, z = _activations(model, names, x, draws)
            wanted = sign.to(a)[z.argmax(dim=1)]
            broken = ((a > 0) & (wanted < 0)) | ((a <= 0) & (wanted > 0))
            return broken.to(a).sum(dim=1) / wanted.abs().sum(dim=1).clamp(min=1)

        def backward_model(x: Tensor, draws: Draws) -> Tensor:
            a, z = _activations(model, names, x, draws)
            wanted = sign.to(a)[z.argmax(dim=1)]
            return (-wanted * a).relu().sum(dim=1) / wanted.abs().sum(dim=1).clamp(min=1)

        return Scorer(score, backward_model)


def _activations(model: Classifier, names: list[str], x: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """(pre-activations of the ReLUs [n, neurons], logits)"""
    with _inputs_of(model, names) as seen:
        z = logits(model, x, draws)
    return torch.cat([seen[name].flatten(1) for name in names], dim=1), z


def _relus(model: Classifier, x: Tensor) -> list[str]:
    """Names of the ReLU modules that are called, in the order of their last call."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.ReLU)]
    with _inputs_of(model, names) as seen, torch.no_grad():
        logits(model, x, Draws(0, torch.arange(len(x), device=x.device)))
    return [name for name, a in seen.items() if len(a) == len(x)]


@contextmanager
def _inputs_of(model: Classifier, names: list[str]) -> Iterator[dict[str, Tensor]]:
    """What each of the modules is called with, the last time, during the block."""
    seen: dict[str, Tensor] = {}

    def watch(name: str) -> torch.utils.hooks.RemovableHandle:
        def keep(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen.pop(name, None)
            seen[name] = args[0].clone()  # the ReLU may work in place

        return model.get_submodule(name).register_forward_pre_hook(keep)

    handles = [watch(name) for name in names]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
