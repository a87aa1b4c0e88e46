"""IBD-PSC: the prediction of an image with a trigger does not change when weights of batch norms are enlarged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from siegebench.classifier import Classifier, copied
from siegebench.data import Granted, ImageSet
from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from siegebench.types import Count, InputDetector, Positive, Scorer, Share

from ._fitting import logits


@dataclass(frozen=True, kw_only=True)
class IBDPSC(InputDetector):
    """Mean probability of the predicted label in models with enlarged weights (Hou, Feng, Hua, Luo, Zhang, Li 2024).

    Model k multiplies gamma and beta of the last k batch norms by w. k_0 is the first k with a clean error above xi;
    the score is the mean over the models k_0, ..., k_0 + n - 1 of the softmax of the label that the unchanged model
    predicts. If no k reaches xi, k_0 is that with the largest error. Models beyond the number of batch norms are left
    out.

    Nothing is random, except a randomised model. Cost: n + 1 forward passes per image; one pass over the clean images
    for each k that is tried.

    Attributes:
        w: factor.
        xi: clean error that k_0 exceeds.
        n: number of models.

    Differs from the paper: no threshold is set (theirs: 0.9). k_0 is chosen on the clean budget that is not used for
    thresholds. Its rule when no k reaches xi is ours; the reference implementation fails there.

    Raises:
        NotApplicable: for networks without batch norms.
    """

    poisons: ClassVar[tuple[dict[str, Any], ...]] = ({"name": "badnets", "rate": 0.02},)  # learnt less firmly

    w: Positive = 1.5
    xi: Share = 0.6
    n: Count = 5

    def fit(self, model: Classifier, data: Granted, draws: Draws) -> Scorer:
        inner = copied(model).eval().requires_grad_(False)
        clean = data.clean
        device, dtype = next(model.parameters()).device, next(model.parameters()).dtype
        norms = _norms(inner, clean.pixels(slice(0, 2), dtype).to(device))
        if not norms:
            raise NotApplicable(
                f"ibd_psc enlarges batch norms, and {model.card.name} has none: it needs a network with them"
            )
        enlarged = [self._weights(inner, norms[-k:]) for k in range(1, len(norms) + 1)]
        start = self._start(inner, enlarged, clean)
        chosen = enlarged[start : start + self.n]

        def score(x: Tensor, draws: Draws) -> Tensor:
            label = logits(inner, x, draws).argmax(dim=1, keepdim=True)
            p = [_call(inner, w, x, draws).softmax(dim=1).gather(1, label)[:, 0] for w in chosen]
            return torch.stack(p).mean(dim=0)

        return Scorer(score)

    def _weights(self, model: Classifier, names: list[str]) -> dict[str, Tensor]:
        """gamma and beta of these batch norms, enlarged."""
        own = dict(model.named_parameters())
        return {f"{name}.{part}": self.w * own[f"{name}.{part}"] for name in names for part in ("weight", "bias")}

    @torch.no_grad()
    def _start(self, model: Classifier, enlarged: list[dict[str, Tensor]], clean: ImageSet) -> int:
        """Index of k_0."""
        device, dtype = next(model.parameters()).device, next(model.parameters()).dtype
        draws, errors = Draws(0, clean.ids), []
        for weights in enlarged:
            wrong = 0
            for i in torch.arange(len(clean)).split(128):
                z = _call(model, weights, clean.pixels(i, dtype).to(device), draws[i].to(device))
                wrong += int((z.argmax(dim=1).cpu() != clean.labels[i]).sum())
            errors.append(wrong / len(clean))
            if errors[-1] > self.xi:
                return len(errors) - 1
        return errors.index(max(errors))


def _call(model: Classifier, weights: dict[str, Tensor], x: Tensor, draws: Draws) -> Tensor:
    """Logits with some of the weights replaced."""
    z: Tensor = functional_call(model, weights, (x, draws if model.randomized else None))
    return z


def _norms(model: Classifier, x: Tensor) -> list[str]:
    """Names of the batch norms with weights, in the order in which a forward pass comes to them."""
    order: list[str] = []
    found = {n: m for n, m in model.named_modules() if isinstance(m, _BatchNorm) and m.affine}

    def watch(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        return module.register_forward_pre_hook(lambda _m, _x: None if name in order else order.append(name))

    handles = [watch(name, module) for name, module in found.items()]
    with torch.no_grad():
        model(x, Draws(0, torch.arange(len(x), device=x.device)) if model.randomized else None)
    for handle in handles:
        handle.remove()
    return order
