"""AttentionAgreement: whether attention is on the words that matter according to the gradient."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from siegebench import ops
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.text import attentive
from siegebench.threat import NORMS, Norm, ThreatModel
from siegebench.types import Measure

FEWEST = 3  # words of a text whose correlation is counted


@dataclass(frozen=True, kw_only=True)
class AttentionAgreement(Measure):
    """Per text, the Pearson correlation of the attention of the words with the norm of the loss gradient at each.

    The agreement that Kitada and Iyatomi, Applied Intelligence 2022, arXiv 2104.08763, report, with the gradient of the
    cross-entropy at the embeddings as the importance of a word. `correlation` is the mean over texts of three words or
    more, `correlation_se` its standard error, `entropy` that of the attention relative to equal weights. Nothing is
    random. Cost: one forward and one backward pass per text, and one to read the attention.
    """

    every: ClassVar[bool] = True
    norms: ClassVar[tuple[Norm, ...]] = NORMS

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> dict[str, Any]:
        net = attentive(oracle.model)
        g, _, _ = oracle.gradient(x, partial(ops.cross_entropy, y=y))
        with torch.no_grad():
            e = oracle.model.embedded(x)
            real = net.real(e)
            a = net.weigh(net.scores(net.states(e, real)), real)
        words = real.sum(dim=1)
        enough = words >= FEWEST
        importance = g.norm(dim=2)
        each = _correlation(a, importance, real)[enough]
        entropy = -(a * a.clamp(min=1e-30).log()).sum(dim=1) / words.clamp(min=2).log()
        n = max(1, len(each))
        return {
            "metrics": {
                "correlation": float(each.mean()) if len(each) else 0.0,
                "correlation_se": float(each.std() / n**0.5) if len(each) > 1 else 0.0,
                "entropy": float(entropy.mean()),
                "texts": float(enough.sum()),
            },
            "flags": [],
        }


def _correlation(a: Tensor, b: Tensor, real: Tensor) -> Tensor:
    """Pearson correlation of the rows over the real places, [n]; 0 where one of them is constant."""
    count = real.sum(dim=1, keepdim=True)
    a, b = ((v - (v * real).sum(dim=1, keepdim=True) / count) * real for v in (a, b))
    return (a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1)).clamp(min=1e-30)
