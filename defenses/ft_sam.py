"""FT-SAM: fine-tuning with sharpness-aware minimisation, whose perturbation is largest for large weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.data import Granted
from siegebench.draws import Draws, derive_seed
from siegebench.train import Recipe, train
from siegebench.types import Defense, Positive

from ._repair import TUNING


@dataclass(frozen=True, kw_only=True)
class FTSAM(Defense):
    """Fine-tune on the clean images along grad L(theta + e), where e is the worst step in a neighbourhood of theta.

    Zhu, Wei, Shen, Fan, Wu, "Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware Minimization", ICCV
    2023.

        e = rho T^2 g / ||T g||,    g = grad L(theta),    T = |theta| element by element

    Neurons of a backdoor have large weights, which plain fine-tuning on clean images hardly changes; here large weights
    are perturbed most.

    Random: the order of the images and their augmentation.

    Cost: twice that of `fine_tuning`.

    Differs from the paper: T is |theta| for all weights, and the statistics of the batch norms are those of the passes
    at theta.

    Attributes:
        rho: size of the perturbation. The authors use 2 for CIFAR-10.
        tuning: how the network is trained.
    """

    trains: ClassVar[bool] = True
    tracks: ClassVar[tuple[str, ...]] = ("backdoor",)

    rho: Positive = 2.0
    tuning: Recipe = TUNING

    def wrap(self, model: Classifier) -> Classifier:
        return model

    def fit(self, defended: Classifier, data: Granted, draws: Draws) -> None:
        theta = list(defended.requires_grad_(True).parameters())
        weights: list[Tensor] = []  # theta while the network has theta + e
        statistics: list[Tensor] = []

        def loss(z: Tensor, y: Tensor, x: Tensor, index: Tensor) -> Tensor:
            gradients = torch.autograd.grad(F.cross_entropy(z, y), theta, materialize_grads=True)
            weights.extend(w.detach().clone() for w in theta)
            statistics.extend(b.clone() for b in defended.buffers())
            with torch.no_grad():
                for w, e in zip(theta, worst_step(weights, gradients, self.rho), strict=True):
                    w.add_(e)
            return F.cross_entropy(defended(x), y)

        def restore() -> None:
            with torch.no_grad():
                for now, before in zip([*theta, *defended.buffers()], [*weights, *statistics], strict=True):
                    now.copy_(before)
            weights.clear()
            statistics.clear()

        seed = derive_seed(draws.seed, "ft-sam")
        train(defended, data.clean, self.tuning, seed, loss=loss, gradients=restore)


def worst_step(theta: list[Tensor], g: tuple[Tensor, ...], rho: float) -> list[Tensor]:
    """e = rho T^2 g / ||T g|| with T = |theta|, for the tensors of a network; the norm is over all of them."""
    norm = torch.stack([(w.abs() * h).norm() for w, h in zip(theta, g, strict=True)]).norm()
    return [rho * w.square() * h / (norm + 1e-12) for w, h in zip(theta, g, strict=True)]
