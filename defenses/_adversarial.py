"""Adversarial training: the search in the ball and the training loop that its variants share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench import ops
from siegebench.classifier import Classifier
from siegebench.data import Granted, ImageSet
from siegebench.draws import Draws, derive_seed
from siegebench.train import Recipe, renew, train
from siegebench.types import Count, Defense, Positive, Share

Norm = Literal["linf", "l2"]
Start = Literal["uniform", "near"]
Gain = Callable[[Tensor], Tensor]  # logits [n, K] to what delta increases, a sum over the images
Inner = Callable[[Classifier, Tensor, Tensor], Gain]
Outer = Callable[[Classifier, Tensor, Tensor, Tensor, Tensor], Tensor]

RECIPE = Recipe()


@dataclass(frozen=True, kw_only=True)
class Ball:
    """A ball around each image, and how the worst image in it is found: K steps of projected gradient ascent.

    Attributes:
        norm, eps: the ball.
        step, steps: length and number K of the steps.
        start: `uniform` in the ball, or `near` x: x + 0.001 N(0, I), for gains whose gradient is zero at x.
    """

    norm: Norm
    eps: float
    step: float
    steps: int
    start: Start = "uniform"

    def maximise(self, model: Classifier, x: Tensor, gain: Gain, draws: Draws, fraction: float = 1.0) -> Tensor:
        """x + delta_K [n, C, H, W], within a fraction of eps; the model's mode does not change."""
        eps, a, draws = fraction * self.eps, fraction * self.step, draws.to(x.device)
        x_k = ops.project(x + self._start(x, eps, draws), x, self.norm, eps)
        for _ in range(self.steps):
            x_k.requires_grad_(True)
            (g,) = torch.autograd.grad(gain(model(x_k, draws)), x_k)  # no gradients of the weights
            x_k = ops.project(x_k.detach() + a * ops.normalise(g, self.norm), x, self.norm, eps)
        return x_k

    def _start(self, x: Tensor, eps: float, draws: Draws) -> Tensor:
        shape = tuple(x.shape[1:])
        if self.start == "near":
            delta = 0.001 * draws.normal(shape, purpose="start")
        elif self.norm == "linf":
            delta = eps * (2 * draws.uniform(shape, purpose="start") - 1)
        else:
            radius = eps * draws.uniform(purpose="radius") ** (1 / x[0].numel())
            delta = ops.over(radius, x) * ops.normalise(draws.normal(shape, purpose="start"), "l2")
        return delta.to(x.dtype)


def against(y: Tensor) -> Gain:
    """The cross-entropy with the labels y [n], summed over the images."""
    return lambda z: F.cross_entropy(z, y, reduction="sum")


def divergence(z: Tensor, z_adv: Tensor) -> Tensor:
    """KL(softmax(z) || softmax(z_adv)) of each image, [n], for logits [n, K]; saturated ones have finite gradients."""
    return F.kl_div(F.log_softmax(z_adv, dim=1), F.log_softmax(z, dim=1), reduction="none", log_target=True).sum(dim=1)


def away_from(model: Classifier, x: Tensor) -> Gain:
    """KL(p(x) || p(x')) as a function of the logits of x', summed over the images."""
    with torch.no_grad():
        z = model(x)
    return lambda z_adv: divergence(z, z_adv).sum()


@dataclass(frozen=True, kw_only=True)
class MinMax:
    """min_theta E outer(theta, x, y, x', z(x')), where x' in the ball around x maximises `inner`.

    Attributes:
        ball: where x' is, and how it is found.
        recipe: how theta is trained.
        inner: (model, x, y) to what x' increases.
        outer: (model, x, y, x', logits of x') to the loss that theta decreases.
        renewed: training starts from new weights, not from those of the model.
        batch_norm: mode of the model while x' is computed.
        eps_warmup: fraction of the epochs over which eps grows linearly.
        keep_best: keep the weights of the epoch with the best accuracy under the inner attack on the clean budget.
        perturb: called with the loss as a function of theta, and the epoch, once x' is found; it may move theta.
        gradients: called between the backward pass and the step of the optimiser.
        after: called after each epoch; training ends if it returns True.
    """

    ball: Ball
    recipe: Recipe
    inner: Inner
    outer: Outer
    renewed: bool = True
    batch_norm: Literal["eval", "train"] = "eval"
    eps_warmup: float = 0.0
    keep_best: bool = False
    perturb: Callable[[Callable[[], Tensor], int], None] | None = None
    gradients: Callable[[], None] | None = None
    after: Callable[[int], bool | None] | None = None


class AdversarialTraining(Defense):
    """A defense that trains a network on the worst image of each ball; `problem` says what is worst, and the loss.

    All of them draw the same initial weights, order of images and augmentation: two of them differ in the method only.
    """

    trains: ClassVar[bool] = True
    adaptive: ClassVar[tuple[dict[str, Any], ...]] = ({"name": "pgd", "loss": "margin", "steps": 50, "restarts": 5},)

    def wrap(self, model: Classifier) -> Classifier:
        return model.fresh(0)  # the structure; `fit` trains the weights

    @abstractmethod
    def problem(self, model: Classifier, data: Granted, seed: int) -> MinMax:
        """What is minimised and maximised; the model has the weights that `wrap` gave it."""

    def fit(self, defended: Classifier, data: Granted, draws: Draws) -> None:
        seed = derive_seed(draws.seed, "pgd_at")  # one name for all
        solve(self.problem(defended, data, seed), defended, data, seed)


@dataclass(frozen=True, kw_only=True)
class BallTraining(AdversarialTraining):
    """An adversarial training with the parameters of a `Ball`; a variant adds its own, and says what differs.

    Attributes:
        norm, eps: the ball.
        step, steps: length and number K of the steps of the search.
        recipe: how the network is trained; the preset `paper`, if there is one, is the authors'.
        eps_warmup: fraction of the epochs over which eps (and the step with it) grows linearly. Without it, small
            networks may stay at chance when eps is large.
        keep_best: deploy the weights of the epoch with the best accuracy under PGD on the clean budget, against robust
            overfitting (Rice, Wong, Kolter, ICML 2020). Otherwise deploy the last weights.
    """

    norm: Literal["linf", "l2"] = "linf"
    eps: Positive = 8 / 255
    step: Positive = 2 / 255
    steps: Count = 10
    recipe: Recipe = RECIPE
    eps_warmup: Share = 0.0
    keep_best: bool = False

    def min_max(self, inner: Inner, outer: Outer, start: Start) -> MinMax:
        """The problem with these losses, in this ball."""
        return MinMax(
            ball=Ball(norm=self.norm, eps=self.eps, step=self.step, steps=self.steps, start=start),
            recipe=self.recipe,
            inner=inner,
            outer=outer,
            eps_warmup=self.eps_warmup,
            keep_best=self.keep_best,
        )


def solve(this: MinMax, model: Classifier, data: Granted, seed: int) -> None:
    """Train the model in place."""
    if this.renewed:
        renew(model, seed)
    images, x_clean = data.train, torch.empty(0)
    held_out = (data.clean, data.val) if this.keep_best else ()
    best, kept = -1, {}

    def worst(x: Tensor, y: Tensor, index: Tensor, epoch: int) -> Tensor:
        nonlocal x_clean
        x_clean = x
        model.train(this.batch_norm == "train")
        fraction = min(1.0, (epoch + 1) / max(1.0, this.eps_warmup * this.recipe.epochs))
        draws = Draws(seed, images.ids[index]).at(epoch)
        x_adv = this.ball.maximise(model, x, this.inner(model, x, y), draws, fraction)
        model.train()
        if this.perturb is not None:
            this.perturb(lambda: this.outer(model, x, y, x_adv, model(x_adv)), epoch)
        return x_adv

    def loss(z: Tensor, y: Tensor, x_adv: Tensor, index: Tensor) -> Tensor:
        return this.outer(model, x_clean, y, x_adv, z)

    def keep(epoch: int) -> None:
        nonlocal best, kept
        correct = sum(right(this.ball, model.eval(), part, seed) for part in held_out)
        if correct >= best:
            best, kept = correct, {k: v.clone() for k, v in model.state_dict().items()}

    after = keep if held_out else this.after
    train(model, images, this.recipe, seed, images=worst, loss=loss, gradients=this.gradients, after=after)
    if held_out:
        model.load_state_dict(kept)


def right(ball: Ball, model: Classifier, data: ImageSet, seed: int, batch: int = 256) -> int:
    """Number of images that the model, in eval mode, classifies correctly after PGD on the cross-entropy."""
    like, found = next(model.parameters()), 0
    for index in torch.arange(len(data)).split(batch):
        x, y = data.pixels(index, like.dtype).to(like.device), data.labels[index].to(like.device)
        draws = Draws(seed, data.ids[index])
        x_adv = ball.maximise(model, x, against(y), draws.child("held out"))
        with torch.no_grad():
            found += int((model(x_adv, draws.to(like.device)).argmax(dim=1) == y).sum())
    return found
