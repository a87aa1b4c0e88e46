"""Classifiers of texts behind a table that rewrites characters."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from siegebench.classifier import Classifier, Wrapped
from siegebench.draws import Draws
from siegebench.text import PLANE


@cache
def table(rule: Callable[[str], str]) -> Tensor:
    """What a rule makes of each code point of the first plane, int64; itself where that is not one code point."""
    return torch.tensor([ord(made) if len(made := rule(chr(i))) == 1 else i for i in range(PLANE)])


class Rewritten(Wrapped):
    """A classifier that reads other characters: f(t(x)), with a table t of code points.

    Embeddings pass unchanged, so an attack on them sees the gradient of f at the embeddings of t(x).
    """

    def __init__(self, inner: Classifier, rule: Callable[[str], str]) -> None:
        super().__init__(inner)
        self.rule = rule

    def _read(self, x: Tensor) -> Tensor:
        if x.is_floating_point():
            return x
        to = table(self.rule).to(x.device)
        return torch.where(x < PLANE, to[x.clamp(max=PLANE - 1)], x)

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        logits: Tensor = self.inner(self._read(x), draws)
        return logits

    def backward_model(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        return self.inner.backward_model(self._read(x), draws)

    def features(self, x: Tensor) -> Tensor:
        return self.inner.features(self._read(x))

    def embedded(self, x: Tensor) -> Tensor:
        return self.inner.embedded(self._read(x))
