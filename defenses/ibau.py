"""I-BAU: unlearn the worst universal perturbation, with a gradient that includes its dependence on the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.data import Granted
from siegebench.draws import Draws, derive_seed
from siegebench.types import Count, Defense, Positive, Share


@dataclass(frozen=True, kw_only=True)
class IBAU(Defense):
    """min_theta L(d(theta), theta), where d(theta) maximises H(d, theta), one perturbation for all images.

    Zeng, Chen, Park, Mao, Jin, Jia, "Adversarial Unlearning of Backdoors via Implicit Hypergradient", ICLR 2022.

        H(d, theta) = CE(z(x + d), y) - penalty ||d||^2
        L(d, theta) = CE(z(x'), y),    x' = x + d for a part of the batch, x for the rest

    A round has two parts. Ascent: d starts at 0 and makes one step for each batch of clean images, against the model's
    own predictions. Descent: for each batch a step of Adam on theta, along the whole gradient of L, including how the
    maximiser d moves with theta. With the map Phi(d) = d + step grad_d H, whose fixed point is d, that is

        dL/dtheta = grad_theta L + (dPhi/dtheta)^T v,    v = (dPhi/dd)^T v + grad_d L, iterated `fixed_point` times

    Random: which images of a batch get d.

    Cost: for each batch and round, about 3 + `fixed_point` backward passes. No weights but the network's are trained.

    Differs from the paper: no difference in kind; Phi is evaluated on the first batch, as in the authors' code. At
    least one image of each batch gets d.

    Attributes:
        rounds: of ascent and descent; the authors use 5, with 5,000 clean images.
        lr: of Adam on theta; the authors' script has 1e-3, their notebooks 1e-4.
        batch: images in a batch.
        ascent: learning rate of SGD on d.
        penalty: weight of ||d||^2.
        part: fraction of a batch that gets d in L.
        fixed_point, step: number of iterations for v, and the step in Phi.
    """

    trains: ClassVar[bool] = True
    tracks: ClassVar[tuple[str, ...]] = ("backdoor",)

    rounds: Count = 5
    lr: Positive = 1e-3
    batch: Count = 100
    ascent: Positive = 10.0
    penalty: Positive = 1e-3
    part: Share = 0.01
    fixed_point: Count = 5
    step: Positive = 0.1

    def quick(self) -> Self:
        return replace(self, rounds=1, fixed_point=2)

    def wrap(self, model: Classifier) -> Classifier:
        return model

    def fit(self, defended: Classifier, data: Granted, draws: Draws) -> None:
        model, clean = defended.requires_grad_(True).eval(), data.clean
        like, random = next(model.parameters()), torch.Generator().manual_seed(derive_seed(draws.seed, "i-bau"))
        theta = list(model.parameters())
        optimiser = torch.optim.Adam(theta, self.lr)
        batches = [
            (clean.pixels(i, like.dtype).to(like.device), clean.labels[i].to(like.device))
            for i in torch.arange(len(clean)).split(self.batch)
        ]

        def inner(d: Tensor, x: Tensor, y: Tensor) -> Tensor:  # H
            return F.cross_entropy(model(x + d), y) - self.penalty * d.square().sum()

        for _ in range(self.rounds):
            d = torch.zeros_like(batches[0][0][:1])
            for x, _ in batches:
                d.requires_grad_(True)
                with torch.no_grad():
                    own = model(x).argmax(dim=1)
                (g,) = torch.autograd.grad(inner(d, x, own), d)
                d = (d + self.ascent * g).detach()
            for x, y in batches:
                chosen = torch.zeros(len(x), dtype=torch.bool)
                chosen[torch.randperm(len(x), generator=random)[: max(1, int(self.part * len(x)))]] = True
                patched = chosen.view(-1, 1, 1, 1).to(x)
                d.requires_grad_(True)
                mapped = d + self.step * torch.autograd.grad(inner(d, *batches[0]), d, create_graph=True)[0]
                gradients = hypergradient(
                    F.cross_entropy(model(x + patched * d), y), mapped, d, theta, self.fixed_point
                )
                for p, gradient in zip(theta, gradients, strict=True):
                    p.grad = gradient
                optimiser.step()
                d = d.detach()
        optimiser.zero_grad()


def hypergradient(outer: Tensor, mapped: Tensor, d: Tensor, theta: Sequence[Tensor], count: int) -> list[Tensor]:
    """Gradient of an outer loss (d, theta) with respect to theta, where d is the fixed point of Phi(d, theta) = mapped.

    Grazzi, Franceschi, Pontil, Salzo, "On the Iteration Complexity of Hypergradient Computation", ICML 2020: `count`
    iterations of v = (dPhi/dd)^T v + grad_d outer, from 0.
    """
    g_d, *g_theta = torch.autograd.grad(outer, [d, *theta], materialize_grads=True)
    v = torch.zeros_like(d)
    for _ in range(count):
        v = torch.autograd.grad(mapped, d, v, retain_graph=True)[0] + g_d
    moved = torch.autograd.grad(mapped, list(theta), v, materialize_grads=True)
    return [g + m for g, m in zip(g_theta, moved, strict=True)]
