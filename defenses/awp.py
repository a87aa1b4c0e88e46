"""Adversarial weight perturbation: train on the worst images and, in a small region, the worst weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.data import Granted
from siegebench.types import Positive, Share

from ._adversarial import AdversarialTraining, MinMax


@dataclass(frozen=True, kw_only=True)
class AWP(AdversarialTraining):
    """min_theta max_v E rho(theta + v): the gradient of each step is taken at weights perturbed against the loss.

    Wu, Xia, Wang, "Adversarial Weight Perturbation Helps Robust Generalization", NeurIPS 2020, arXiv 2004.05884.

    rho is the loss of another adversarial training on its adversarial images x', which are found first. Then, for each
    weight tensor of more than one dimension,

        v = gamma ||theta|| / ||g|| g,    g = grad_theta rho(theta)
        theta <- theta - lr grad rho(theta + v)

    so v is a single step of fixed length relative to the weights. Minima that are sharp in the weights are avoided,
    against robust overfitting. The deployed network is an ordinary one with useful gradients.

    Random: what the other training draws; the perturbation draws nothing.

    Cost: one more forward and backward pass per training step than the other training.

    Differs from the paper: the gradient g is computed in the network itself, whose batch-norm statistics are restored,
    and not in a copy; the weights are restored exactly instead of by subtraction, before the step of the optimiser
    instead of after it.

    Attributes:
        defense: the adversarial training, such as `pgd_at`, `trades` or `mart`, with its ball and its recipe.
        gamma: length of v relative to the weights of a layer; the authors use 0.005 to 0.01.
        warmup: fraction of the epochs at the beginning without perturbation; the authors use 10 of 200 with TRADES.
    """

    defense: AdversarialTraining
    gamma: Positive = 0.005
    warmup: Share = 0.0

    def wrap(self, model: Classifier) -> Classifier:
        return self.defense.wrap(model)

    def problem(self, model: Classifier, data: Granted, seed: int) -> MinMax:
        inner = self.defense.problem(model, data, seed)
        weights = [w for name, w in model.named_parameters() if "weight" in name and w.dim() > 1 and w.requires_grad]
        kept: list[Tensor] = []  # the weights theta while the network has theta + v

        def perturb(rho: Callable[[], Tensor], epoch: int) -> None:
            if inner.perturb is not None:
                inner.perturb(rho, epoch)
            if epoch < self.warmup * inner.recipe.epochs:
                return
            statistics = [b.clone() for b in model.buffers()]
            gradients = torch.autograd.grad(rho(), weights, materialize_grads=True)
            with torch.no_grad():
                for buffer, before in zip(model.buffers(), statistics, strict=True):
                    buffer.copy_(before)
                for theta, g in zip(weights, gradients, strict=True):
                    kept.append(theta.clone())
                    theta.add_(self.gamma * theta.norm() / g.norm().clamp(min=1e-20) * g)

        def restore() -> None:
            with torch.no_grad():
                for theta, before in zip(weights, kept, strict=False):
                    theta.copy_(before)
            kept.clear()
            if inner.gradients is not None:  # it may read the weights, which are theta again
                inner.gradients()

        return replace(inner, perturb=perturb, gradients=restore)
