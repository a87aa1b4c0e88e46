"""PGD adversarial training: train the network on the worst-case image of each ball."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench import ops
from siegebench.classifier import Classifier
from siegebench.data import Granted, ImageSet
from siegebench.draws import Draws, derive_seed
from siegebench.train import Recipe, train
from siegebench.types import Count, Defense, Positive, Share

RECIPE = Recipe()


@dataclass(frozen=True, kw_only=True)
class PGDAdversarialTraining(Defense):
    """min_theta E max_{||delta|| <= eps} CE(z_theta(x + delta), y), with K steps of PGD for the inner maximum.

    Madry, Makelov, Schmidt, Tsipras, Vladu, "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018.

        delta_0 ~ U(ball),    delta_{k+1} = Pi(delta_k + a d(grad_delta CE(z(x + delta_k), y))),    k < K

    d is the sign for Linf and the unit vector for L2; Pi projects onto the ball and the box. Training starts from new
    weights and uses only the images x + delta_K. The deployed network is an ordinary one with useful gradients. A
    strong attacker runs AutoAttack, as on every white-box board, and PGD with restarts.

    Random: the initial weights, the order and augmentation of the images, and delta_0.

    Cost: K more forward and backward passes per training step than standard training.

    Differs from the paper: batch norms are in eval mode while delta is computed (`batch_norm`). So the perturbation is
    the worst case for the network as it will be deployed, and the running statistics count each image once; the authors
    use batch statistics. One cosine schedule instead of a piecewise constant one.

    Attributes:
        norm, eps: the ball.
        step, steps: a and K.
        recipe: how the network is trained; `paper` is the authors' for CIFAR-10.
        batch_norm: mode of the network while delta is computed. `train` is the authors' choice.
        eps_warmup: fraction of the epochs over which eps (and a with it) grows linearly. Without it, small networks may
            stay at chance when eps is large.
        keep_best: deploy the weights of the epoch with the best accuracy under PGD on the clean budget, against robust
            overfitting (Rice, Wong, Kolter, ICML 2020). Otherwise deploy the last weights.
    """

    trains: ClassVar[bool] = True
    adaptive: ClassVar[tuple[dict[str, Any], ...]] = ({"name": "pgd", "loss": "margin", "steps": 50, "restarts": 5},)

    norm: Literal["linf", "l2"] = "linf"
    eps: Positive = 8 / 255
    step: Positive = 2 / 255
    steps: Count = 10
    recipe: Recipe = RECIPE
    batch_norm: Literal["eval", "train"] = "eval"
    eps_warmup: Share = 0.0
    keep_best: bool = False

    def wrap(self, model: Classifier) -> Classifier:
        return model.fresh(0)  # the structure; `fit` trains the weights

    def fit(self, defended: Classifier, data: Granted, draws: Draws) -> None:
        seed, images = derive_seed(draws.seed, "pgd_at"), data.train
        defended.load_state_dict(defended.fresh(derive_seed(seed, "weights")).state_dict())
        held_out = (data.clean, data.val) if self.keep_best else ()
        best, kept = -1, {}

        def worst(x: Tensor, y: Tensor, index: Tensor, epoch: int) -> Tensor:
            defended.train(self.batch_norm == "train")
            fraction = min(1.0, (epoch + 1) / max(1.0, self.eps_warmup * self.recipe.epochs))
            x_adv = self.maximise(defended, x, y, Draws(seed, images.ids[index]).at(epoch), fraction)
            defended.train()
            return x_adv

        def keep(epoch: int) -> None:
            nonlocal best, kept
            correct = sum(self.right(defended.eval(), part, seed) for part in held_out)
            if correct >= best:
                best, kept = correct, {k: v.clone() for k, v in defended.state_dict().items()}

        train(defended, images, self.recipe, seed, images=worst, after=keep if held_out else None)
        if held_out:
            defended.load_state_dict(kept)

    def maximise(self, model: Classifier, x: Tensor, y: Tensor, draws: Draws, fraction: float = 1.0) -> Tensor:
        """x + delta_K [n, 3, H, W] for labels y [n], within a fraction of eps; the model's mode does not change."""
        eps, a, shape, draws = fraction * self.eps, fraction * self.step, tuple(x.shape[1:]), draws.to(x.device)
        if self.norm == "linf":
            delta = eps * (2 * draws.uniform(shape, purpose="start") - 1)
        else:
            radius = eps * draws.uniform(purpose="radius") ** (1 / x[0].numel())
            delta = ops.over(radius, x) * ops.normalise(draws.normal(shape, purpose="start"), "l2")
        x_k = ops.project(x + delta.to(x.dtype), x, self.norm, eps)
        for _ in range(self.steps):
            x_k.requires_grad_(True)
            loss = F.cross_entropy(model(x_k, draws), y, reduction="sum")
            (g,) = torch.autograd.grad(loss, x_k)  # no gradients of the weights
            x_k = ops.project(x_k.detach() + a * ops.normalise(g, self.norm), x, self.norm, eps)
        return x_k

    def right(self, model: Classifier, data: ImageSet, seed: int, batch: int = 256) -> int:
        """Number of images that the model, in eval mode, classifies correctly after PGD."""
        like, found = next(model.parameters()), 0
        for index in torch.arange(len(data)).split(batch):
            x, y = data.pixels(index, like.dtype).to(like.device), data.labels[index].to(like.device)
            draws = Draws(seed, data.ids[index])
            x_adv = self.maximise(model, x, y, draws.child("held out"))
            with torch.no_grad():
                found += int((model(x_adv, draws.to(like.device)).argmax(dim=1) == y).sum())
        return found
