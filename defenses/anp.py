"""ANP: find the neurons that collapse to the target class when they are perturbed, and prune them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from siegebench.classifier import Classifier
from siegebench.data import Granted, ImageSet
from siegebench.draws import Draws, derive_seed
from siegebench.train import accuracy
from siegebench.types import Count, Defense, Positive, Share

from ._repair import norms

THRESHOLDS = 0.05 * torch.arange(20)  # 0, 0.05, ..., 0.95


@dataclass(frozen=True, kw_only=True)
class AdversarialNeuronPruning(Defense):
    """min_m alpha L(m) + (1 - alpha) max_d L(m + d), then prune the neurons whose mask m is small.

    Wu, Wang, "Adversarial Neuron Pruning Purifies Backdoored Deep Models", NeurIPS 2021.

    Each channel of a batch norm has a mask m in [0, 1], 1 at first, and perturbations d_w and d_b in [-eps, eps]:

        BN(x) = (m + d_w) gamma x_hat + (1 + d_b) beta

    L is the cross-entropy on clean images. In each iteration d starts at random and makes `steps` signed ascent steps;
    m then makes a step of SGD. In the end the scale of every channel with m <= t is set to zero. t is the largest of
    0, 0.05, ..., 0.95 that costs at most `drop` of the accuracy on the held-out clean images.

    Random: the batches and the starts of d.

    Cost: `steps` + 2 forward and backward passes in each iteration.

    Differs from the paper: the rule for t is ours. The authors plot a sweep over t and prescribe none, and a common
    benchmark chooses t by the attack success on the test set, which a defender does not know. d is clipped to its
    interval, which the authors' code does not do. Dropout is off, and the batch norms do not keep the statistics of
    the optimisation.

    Attributes:
        eps, steps: size of the perturbation, and its number of steps, each of length eps / steps.
        alpha: weight of the loss without perturbation.
        lr, momentum: of SGD for the masks.
        iterations, batch: number of steps, images in each.
        drop: accuracy on held-out images that pruning may cost, as an absolute difference.
        most: fraction of the channels of a layer that may be pruned, those with the smallest masks.
        batch_norm: whether batch norms use the statistics of the batch (`train`, as the authors do) or their own
            (`eval`) while the masks are optimised.
    """

    trains: ClassVar[bool] = True
    tracks: ClassVar[tuple[str, ...]] = ("backdoor",)

    eps: Positive = 0.4
    steps: Count = 1
    alpha: Share = 0.2
    lr: Positive = 0.2
    momentum: Share = 0.9
    iterations: Count = 400
    batch: Count = 64
    drop: Share = 0.05
    most: Share = 0.5
    batch_norm: Literal["train", "eval"] = "train"

    def wrap(self, model: Classifier) -> Classifier:
        return model

    def fit(self, defended: Classifier, data: Granted, draws: Draws) -> None:
        layers = norms(defended)
        masks = self.masks(defended, layers, data.clean, derive_seed(draws.seed, "anp"))
        self.prune(layers, masks, self.threshold(defended, layers, masks, data.val))

    def masks(self, model: Classifier, layers: dict[str, _BatchNorm], data: ImageSet, seed: int) -> dict[str, Tensor]:
        """The optimised mask [C] of each batch norm."""
        like, random = next(model.parameters()), torch.Generator().manual_seed(seed)
        for module in model.modules():
            module.training = self.batch_norm == "train" and isinstance(module, _BatchNorm)
        fixed = {name: p.detach() for name, p in model.named_parameters()}
        masks = {name: torch.ones_like(norm.weight, requires_grad=True) for name, norm in layers.items()}
        optimiser = torch.optim.SGD(list(masks.values()), self.lr, self.momentum)

        def loss(x: Tensor, y: Tensor, noise: dict[str, tuple[Tensor, Tensor]] | None = None) -> Tensor:
            weights = dict(fixed)
            for name, m in masks.items():
                gamma, beta = fixed[f"{name}.weight"], fixed[f"{name}.bias"]
                d_w, d_b = (0.0, 0.0) if noise is None else noise[name]
                weights[f"{name}.weight"], weights[f"{name}.bias"] = (m + d_w) * gamma, (1 + d_b) * beta
            state = {name: b.clone() for name, b in model.named_buffers()}  # a pass may change their statistics
            z = torch.func.functional_call(model, {**weights, **state}, (x,))
            return F.cross_entropy(z, y)

        def start(m: Tensor) -> Tensor:
            u = torch.rand(m.shape, generator=random, dtype=torch.float64)
            return (self.eps * (2 * u - 1)).to(m).requires_grad_(True)

        for _ in range(self.iterations):
            index = torch.randint(len(data), (min(self.batch, len(data)),), generator=random)
            x, y = data.pixels(index, like.dtype).to(like.device), data.labels[index].to(like.device)
            noise = {name: (start(m), start(m)) for name, m in masks.items()}
            flat = [d for pair in noise.values() for d in pair]
            for _ in range(self.steps):
                gradients = torch.autograd.grad(loss(x, y, noise), flat)
                with torch.no_grad():
                    for d, g in zip(flat, gradients, strict=True):
                        d.add_(self.eps / self.steps * g.sign()).clamp_(-self.eps, self.eps)
            value = self.alpha * loss(x, y) + (1 - self.alpha) * loss(x, y, noise)
            optimiser.zero_grad()
            value.backward(inputs=list(masks.values()))
            optimiser.step()
            with torch.no_grad():
                for m in masks.values():
                    m.clamp_(0, 1)
        model.eval()
        return {name: m.detach() for name, m in masks.items()}

    def threshold(
        self, model: Classifier, layers: dict[str, _BatchNorm], masks: dict[str, Tensor], held_out: ImageSet
    ) -> float:
        """The largest t that the accuracy on held-out images allows; below 0, which prunes nothing, if none does."""
        scales = {name: norm.weight.detach().clone() for name, norm in layers.items()}
        least, best = accuracy(model, held_out) - self.drop, -1.0
        for t in THRESHOLDS.tolist():
            self.prune(layers, masks, t)
            if accuracy(model, held_out) >= least:
                best = t
            with torch.no_grad():
                for name, norm in layers.items():
                    norm.weight.copy_(scales[name])
        return best

    @torch.no_grad()
    def prune(self, layers: dict[str, _BatchNorm], masks: dict[str, Tensor], t: float) -> None:
        """Set the scale of the channels whose mask is at most t to zero."""
        for name, norm in layers.items():
            rank = masks[name].argsort(stable=True).argsort()
            norm.weight[(masks[name] <= t) & (rank < self.most * len(rank))] = 0
