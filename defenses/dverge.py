"""DVERGE: an ensemble whose members are trained on each other's non-robust features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siegebench import ops
from siegebench.classifier import Classifier, Ensemble, frozen
from siegebench.data import Granted
from siegebench.draws import Draws, derive_seed
from siegebench.threat import ThreatModel
from siegebench.train import Recipe, augmented, train
from siegebench.types import Attack, Count, Defense, Positive

from ._attacked import attacked, check_attack
from ._members import Vote, Voting, networks, train_members

RECIPE = Recipe()


class Crossed(Ensemble):
    """The members during training.

    Images [M n, ...], n made from each of the M members in turn, to the logits of all other members for them
    [M (M - 1) n, classes]. Images that follow, n for each member, to the logits of that member itself.
    """

    def __init__(self, members: Sequence[Classifier], parts: int) -> None:
        super().__init__(members)
        self.parts = parts  # M or 2 M

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        M = len(self.members)
        parts = x.split(len(x) // self.parts)
        z = [f(parts[i]) for j, f in enumerate(self.members) for i in range(M) if i != j]
        return torch.cat([*z, *(f(part) for f, part in zip(self.members, parts[M:], strict=False))])


def layers(model: Classifier, x: Tensor) -> list[nn.Module]:
    """The convolutions and linear layers that a network calls for images x; attention may only read their weights."""
    every = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    called: set[nn.Module] = set()
    handles = [m.register_forward_hook(lambda module, _args, _out: called.add(module)) for m in every]
    try:
        with frozen(model), torch.no_grad():
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    return [m for m in every if m in called]


def output(model: Classifier, layer: nn.Module, x: Tensor) -> Tensor:
    """h(x): the output of one layer for images x."""
    seen: list[Tensor] = []
    handle = layer.register_forward_hook(
        lambda _module, _args, out: seen.append(out.clone())
    )  # an activation may change it in place
    try:
        model(x)
    finally:
        handle.remove()
    return seen[0]


@dataclass(frozen=True, kw_only=True)
class DVERGE(Defense):
    """min sum_{i != j} CE(f_j(x'_i), y), where x'_i looks like x to a person and like another image x_t to member i.

    Yang, Zhang, Dong, Inkawhich, Gardner, Touchet, Wilkes, Berry, Li, "DVERGE: diversifying vulnerabilities for
    enhanced robust generation of ensembles", NeurIPS 2020, arXiv 2009.14720.

        x'_i = argmin_{||x' - x||_inf <= eps} ||h_i(x') - h_i(x_t)||^2,    by K steps with momentum 1 from x' = x

    h_i is the output of one layer of member i, drawn anew for each epoch; x_t is a random training image. The members
    start from independent standard trainings. Each then learns the labels y of the images x'_i that carry the
    non-robust features of the other members, so that their vulnerabilities differ. Images made against one member
    should transfer less to the others. White-box attacks differentiate all members together.

    Random: the initial weights, the order and augmentation of the images, the layers, the images x_t. Cost: M
    trainings, then for each image and epoch M K passes forward and backward for x' and M (M - 1) for the weights; M
    times the network at inference.

    Differs from the paper: one optimiser for all members, which have no weights in common. h is the output of a
    convolution or linear layer before any batch norm. x' is made with batch norms in eval mode. The recipe is the
    project's. The vote needs no clamp. With `attack`, its images replace those of the authors' PGD.

    Attributes:
        members: M; the authors use 3, 5 and 8.
        pretraining: how each member is trained first.
        recipe: how the members are trained on x'.
        eps, step, steps: the ball, the step size and K of x'.
        combine: `probabilities` is the authors' vote, the log of the mean softmax; `logits` is the mean.
        attack, attack_eps: train each member on the images of this attack against itself too, within an Linf ball (the
            authors' variant with adversarial training); none by default.
        weight: weight of the sum over i != j beside that loss.
    """

    trains: ClassVar[bool] = True
    adaptive: ClassVar[tuple[dict[str, Any], ...]] = (
        {"name": "pgd", "loss": "margin", "steps": 50, "restarts": 5},
        # with the gradient of the mean logits
        {"name": "bpda", "attack": {"name": "pgd", "loss": "margin", "steps": 50, "restarts": 5}},
    )

    members: Count = 3
    pretraining: Recipe = RECIPE
    recipe: Recipe = RECIPE
    eps: Positive = 0.07
    step: Positive = 0.007
    steps: Count = 10
    combine: Vote = "probabilities"
    attack: Attack | None = None
    attack_eps: Positive = 8 / 255
    weight: Positive = 1.0

    def __post_init__(self) -> None:
        if self.members < 2:
            raise ValueError("members: DVERGE needs at least 2")
        if self.attack is not None:
            check_attack(self.attack, "linf")

    def wrap(self, model: Classifier) -> Classifier:
        return Voting([model.fresh(i) for i in range(self.members)], self.combine)

    def fit(self, defended: Classifier, data: Granted, draws: Draws) -> None:
        assert isinstance(defended, Voting)
        seed, images, members = derive_seed(draws.seed, "dverge"), data.train, networks(defended)
        train_members(defended, images, self.pretraining, seed)
        epochs, M = Draws(seed, torch.zeros(1, dtype=torch.long)), len(members)
        threat = ThreatModel(norm="linf", eps=self.attack_eps)
        crossed = Crossed(members, M if self.attack is None else 2 * M)
        like = next(defended.parameters())
        sample = images.pixels(slice(0, 1), like.dtype).to(like.device)
        each = [layers(f, sample) for f in members]

        def made(x: Tensor, y: Tensor, index: Tensor, epoch: int) -> Tensor:
            own = Draws(seed, images.ids[index]).at(epoch)
            other = own.integers(len(images), purpose="x_t")
            x_t = augmented(images.pixels(other, x.dtype), self.recipe.augment, own, epoch, images.kind).to(x.device)
            layer = int(epochs.integers(len(each[0]), (), epoch, "layer"))
            parts = [self.distil(f, own_layers[layer], x, x_t) for f, own_layers in zip(members, each, strict=True)]
            if self.attack is not None:
                parts += [attacked(f, self.attack, threat, x, y, own.child(j)) for j, f in enumerate(members)]
            return torch.cat(parts)

        def loss(z: Tensor, y: Tensor, x: Tensor, index: Tensor) -> Tensor:
            sums = F.cross_entropy(z, y.repeat(len(z) // len(y)), reduction="none").view(-1, len(y)).mean(dim=1)
            pairs = M * (M - 1)
            return self.weight * sums[:pairs].sum() + sums[pairs:].sum()

        train(crossed, images, self.recipe, derive_seed(seed, "diversify"), images=made, loss=loss)

    def distil(self, model: Classifier, layer: nn.Module, x: Tensor, x_t: Tensor) -> Tensor:
        """x' [n, C, H, W] within eps of x whose output of the layer is near that of x_t."""
        with frozen(model):
            with torch.no_grad():
                h_t = output(model, layer, x_t)
            x_k, m = x.clone(), torch.zeros_like(x)
            for _ in range(self.steps):
                x_k.requires_grad_(True)
                distance = (output(model, layer, x_k) - h_t).square().sum()
                (g,) = torch.autograd.grad(distance, x_k)
                m = m + g / ops.over(ops.flat(g).abs().sum(dim=1).clamp(min=1e-12), g)
                x_k = ops.project(x_k.detach() - self.step * m.sign(), x, "linf", self.eps)
        return x_k
