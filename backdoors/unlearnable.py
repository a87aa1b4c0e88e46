"""Unlearnable examples: noise that minimises the training loss, so that a network learns nothing from the image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.types import Count, Material, Poisoned, Poisoning, Positive, Share

from . import _surrogate


@dataclass(frozen=True, kw_only=True)
class Unlearnable(Poisoning):
    """x' = x + d with min_theta mean_i min_{|d_i|_inf <= eps} CE(f_theta(x_i + d_i), y_i): both levels minimise.

    Huang, Ma, Erfani, Bailey, Wang, "Unlearnable Examples: Making Personal Data Unexploitable", ICLR 2021, arXiv
    2101.04898. From d = 0 and new weights theta, until the training error of f on x + d is at most `error`:

        train_steps steps of SGD on theta, on batches of x + d
        steps times for every image: d <- clip(d - a sign(grad_d CE(f(x + d), y)), +-eps),  x + d in [0, 1]

    With `form: class` there is one d_c for all images of a class: the mean of their d after each batch.

    Random: which images are poisoned, the weights and batches of f, and the noise of `random`.

    Cost: `iterations` times (train_steps + steps N / batch) passes of a batch, at most.

    Attributes:
        rate: fraction of the training set that is poisoned. The attacker uses these images only.
        form: `sample`, one d for each image, or `class`, one for each class (`class` needs fewer steps: 1).
        kind: `min_min` as above. Controls: `random` noise of +-eps; `min_max`, where f is trained on clean images and d
            increases the loss.
        eps, step: bound of d, and a.
        steps: on d in one round.
        train_steps, batch, lr: of f; momentum 0.9, weight decay 5e-4, norm of the gradient at most 5.
        iterations: largest number of rounds.
        error: lambda, the training error at which the rounds end.

    Differs from the paper: the noise is added as computed and the image rounded; the released code clamps the noise to
    positive values when it is applied. Rounds are limited. f is the victim's architecture with other weights. With a
    rate below 1, f never sees the images of others.
    """

    learns: ClassVar[bool] = True

    rate: Share = 1.0
    form: Literal["sample", "class"] = "sample"
    kind: Literal["min_min", "min_max", "random"] = "min_min"
    eps: Positive = 8 / 255
    step: Positive = 0.8 / 255
    steps: Count = 20
    train_steps: Count = 10
    batch: Count = 128
    lr: Positive = 0.1
    iterations: Count = 30
    error: Share = 0.01

    def learn(self, data: ImageSet, seed: int, surrogate: Classifier) -> Material:
        index = Draws(seed, data.ids).order("poison")[: round(self.rate * len(data))].sort().values
        device = next(surrogate.parameters()).device
        x, y = data.pixels(index).to(device), data.labels[index].to(device)
        if self.kind == "random":
            ids = data.ids[index] if self.form == "sample" else data.labels[index]
            d = self.eps * (2 * Draws(seed, ids).uniform(data.shape, purpose="noise") - 1).to(x)
        elif len(index):
            d = self._noise(x, y, Draws(seed, data.ids[index]), surrogate)
        else:
            d = torch.zeros_like(x)
        return {"ids": data.ids[index], "images": data.kind.store((x + d).clamp(0, 1).cpu())}

    def _noise(self, x: Tensor, y: Tensor, draws: Draws, model: Classifier) -> Tensor:
        d, sign = torch.zeros_like(x), -1.0
        if self.kind == "min_max":  # from a random start: where a network is sure, the gradient is zero
            d, sign = self.eps * (2 * draws.uniform(tuple(x.shape[1:]), purpose="start") - 1).to(x), 1.0
        optimiser = torch.optim.SGD(model.parameters(), self.lr, 0.9, weight_decay=5e-4)
        batches: list[Tensor] = []
        for round_ in range(self.iterations):
            model.train()
            for _ in range(self.train_steps):
                if not batches:  # the iterator goes on where it stopped
                    batches = [b for b in draws.order(f"epoch {round_}").split(self.batch) if len(b) > 1]
                rows = batches.pop().to(x.device) if batches else torch.arange(len(x), device=x.device)
                shown = x[rows] + d[rows] if self.kind == "min_min" else x[rows]
                loss = F.cross_entropy(model(shown), y[rows])
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
                optimiser.step()
            model.eval()
            if self.kind == "min_min":
                self._update(x, y, d, model, sign)
            if self._error(model, x + d if self.kind == "min_min" else x, y) <= self.error:
                break
        if self.kind == "min_max":
            self._update(x, y, d, model, sign)
        return d

    def _update(self, x: Tensor, y: Tensor, d: Tensor, model: Classifier, sign: float) -> None:
        """`steps` steps on the noise of every image, in place."""
        for rows in torch.arange(len(x), device=x.device).split(self.batch):

            def gain(image: Tensor, label: Tensor) -> Tensor:
                return sign * F.cross_entropy(model(image), label, reduction="sum")

            moved = _surrogate.ascend(
                model, x[rows], y[rows], gain, eps=self.eps, step=self.step, steps=self.steps, start=d[rows]
            )
            d[rows] = moved - x[rows]
            if self.form == "class":
                for c in y[rows].unique():
                    d[y == c] = d[rows][y[rows] == c].mean(dim=0)

    @torch.no_grad()
    def _error(self, model: Classifier, x: Tensor, y: Tensor) -> float:
        wrong = [
            (model(x[rows]).argmax(dim=1) != y[rows]).sum()
            for rows in torch.arange(len(x), device=x.device).split(self.batch)
        ]
        return float(sum(wrong)) / len(x)

    def poison(self, data: ImageSet, seed: int, material: Material | None = None) -> Poisoned:
        """Replace `rate` of the images; all labels stay.

        Raises:
            ContractError: when there is no material.
        """
        made = self.given(material)["material"]
        place = data.ids.argsort()
        index = place[torch.searchsorted(data.ids[place], made["ids"])]
        order = index.argsort()
        source = data.stored.replaced(index[order], made["images"][order])
        return Poisoned(replace(data, source=source, name=f"{data.name} poisoned"), index[order], material=material)
