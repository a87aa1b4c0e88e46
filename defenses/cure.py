"""CURE: adversarial training of a naturally trained network that updates only the weights with prominent gradients."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.data import Granted
from siegebench.draws import Draws
from siegebench.errors import ConfigError
from siegebench.types import Positive, Share
from siegebench.types.base import lowered

from ._adversarial import BallTraining, MinMax, away_from, divergence

LONGEST = 0.999  # the authors' d; their 200 epochs of CIFAR-10 expect 7,800 revisions
PART = 8  # revisions of a training for each one that is averaged


@dataclass(frozen=True, kw_only=True)
class CURE(BallTraining):
    """Conserve, update, revise: fine-tune a naturally trained network on worst-case images, a part of its weights only.

    Gowda, Zonooz, Arani, "Conserve-Update-Revise to Cure Generalization and Robustness Trade-off in Adversarial
    Training", ICLR 2024, arXiv 2401.14948.

        L = CE(z(x), y) + beta KL(p(x) || p(x')) + gamma [KL(p_rev(x) || p(x)) + KL(p_rev(x') || p(x'))]
        RGP(w) = a |d CE(z(x), y) / dw| + (1 - a) |d CE(z(x'), y) / dw|

    Conserve: in each weight tensor, the gradient of the fraction `conserve` with the lowest prominence RGP is set to
    zero. Update: the others follow the gradient of L. Revise: p_rev is the softmax of a second network, whose weights a
    step moves to d theta_rev + (1 - d) theta with probability r; r decreases linearly to zero over the training. x'
    maximises KL(p(x) || p(x')) in the ball. The deployed network is theta, an ordinary one with useful gradients.

    Random: the order and augmentation of the images, the start of the search, and the steps that revise.

    Cost: that of `trades`, two more backward passes, and two forward passes of the second network per training step.

    Differs from the paper: the decrease of r is not stated there; it is linear here. The authors' code masks other
    gradients than the paper says; this is the paper's rule. Label smoothing of the recipe is not used. Momentum and
    weight decay still move conserved weights.

    Attributes:
        conserve: fraction of the weights of each tensor whose gradient is set to zero; 0.3 for ResNet-18.
        balance: a, the weight of clean images in the prominence.
        beta: weight of the divergence.
        gamma: weight of the revision.
        revise: r, the probability of a revision in the first step.
        decay: d, which averages over the last 1 / (1 - d) revisions. By default these are an eighth of the revisions
            that the training expects, as with the authors' numbers, and at most the authors' 1000; below eight
            revisions, d is 0. A value that averages over more revisions than are expected is refused: the second
            network would remain the natural one.
    """

    conserve: Share = 0.3
    balance: Share = 0.1
    beta: Positive = 6.0
    gamma: Positive = 1.0
    revise: Share = 0.2
    decay: Share | None = None

    def __post_init__(self) -> None:
        if self.revise == 0:
            raise ValueError("revise: with 0 the second network is never revised, and stays the natural one")

    def quick(self) -> Self:
        return lowered(replace(self, decay=None))  # a value for a long training is refused for a short one

    def averaging(self, revisions: float) -> float:
        """d for a training that expects this many revisions.

        Raises:
            ConfigError: when the second network would stay near the natural one.
        """
        if self.decay is None:
            return min(LONGEST, max(0.0, 1 - PART / revisions))
        if self.decay > 0 and (1 - self.decay) * revisions <= 1:
            needs = f"train longer, or leave decay out (here {replace(self, decay=None).averaging(revisions):.3g})"
            told = f"decay {self.decay:g} averages over more revisions than this training expects ({revisions:.0f})"
            raise ConfigError(f"cure: {told}; {needs}")
        return self.decay

    def wrap(self, model: Classifier) -> Classifier:
        return model  # training starts from its weights

    def problem(self, model: Classifier, data: Granted, seed: int) -> MinMax:
        revision = copy.deepcopy(model).eval().requires_grad_(False)
        theta = list(model.requires_grad_(True).parameters())
        total = self.recipe.epochs * max(1, len(data.train) // self.recipe.batch)
        d = self.averaging(self.revise * (total + 1) / 2)
        coin = Draws(seed, torch.zeros(1, dtype=torch.long))
        updated: list[Tensor] = []  # which weights are updated in this step, a mask for each tensor
        step = 0

        def outer(model: Classifier, x: Tensor, y: Tensor, x_adv: Tensor, z_adv: Tensor) -> Tensor:
            z = model(x)
            natural, adversarial = F.cross_entropy(z, y), F.cross_entropy(z_adv, y)
            updated[:] = prominent(natural, adversarial, theta, self.balance, self.conserve)
            with torch.no_grad():
                z_rev, z_rev_adv = revision(x), revision(x_adv)
            revised = divergence(z_rev, z).mean() + divergence(z_rev_adv, z_adv).mean()
            return natural + self.beta * divergence(z, z_adv).mean() + self.gamma * revised

        def conserve() -> None:
            nonlocal step
            for w, mask in zip(theta, updated, strict=True):
                if w.grad is not None:
                    w.grad.mul_(mask)
            if float(coin.uniform(step=step, purpose="revise")) < self.revise * (1 - step / total):
                now = model.state_dict()
                for name, w in revision.state_dict().items():
                    w.lerp_(now[name], 1 - d) if w.is_floating_point() else w.copy_(now[name])
            step += 1

        this = self.min_max(lambda model, x, y: away_from(model, x), outer, start="near")
        return replace(this, renewed=False, gradients=conserve)


def prominent(natural: Tensor, adversarial: Tensor, theta: Sequence[Tensor], a: float, p: float) -> list[Tensor]:
    """A mask for each tensor of weights: true where the prominence is not among the lowest fraction p of the tensor."""
    g, g_adv = (
        torch.autograd.grad(loss, theta, retain_graph=True, materialize_grads=True) for loss in (natural, adversarial)
    )
    masks = []
    for on_clean, on_adversarial in zip(g, g_adv, strict=True):
        rgp = (a * on_clean.abs() + (1 - a) * on_adversarial.abs()).flatten()
        lowest = rgp.argsort()[: int(p * len(rgp))]
        masks.append(torch.ones_like(rgp, dtype=torch.bool).index_fill(0, lowest, False).view_as(on_clean))
    return masks
