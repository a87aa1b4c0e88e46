"""Class images: images of a class, made from grey by gradient steps, and whether another network recognises them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from siegebench import ops
from siegebench.classifier import Classifier
from siegebench.data import ImageSet
from siegebench.draws import Draws, derive_seed
from siegebench.oracle import Oracle
from siegebench.threat import ThreatModel
from siegebench.train import Recipe, train
from siegebench.types import Count, Lesson, Measure, Positive

from . import _maps

RECIPE = Recipe(epochs=6, batch=64, lr=1e-3)
SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class ClassImages(Measure):
    """Targeted steps in L2 from a grey image: x + step g / |g|, g the gradient of log p(class), |x - grey| <= eps.

    Santurkar, Ilyas, Tsipras, Engstrom, Tran, Madry, "Image Synthesis with a Single (Robust) Classifier", NeurIPS 2019,
    arXiv 1906.09453. Whether an image looks like its class is decided by a judge: a network of the same architecture,
    with other initial weights, that is trained on the clean training images and is not used to make the images.
    Metrics:
        own_accept       share of the images that the victim assigns to their class
        cross_accept     share that the judge assigns to their class
        cross_chance     the control: the same for grey images with random noise of the same length
        judge_acc        accuracy of the judge on the given images, which the victim classifies correctly
    Pictures: the images of the first twelve classes, each beside its start.

    Random: the starts (grey with a little noise), the noise of the control, and the training of the judge.

    Cost: steps forward and backward passes for each class and start; the training of the judge.

    Differs from the paper: the start is grey, not a draw from a normal distribution fitted to the class. No inpainting,
    super-resolution or translation, which the paper shows as pictures. The judge is ours.

    Attributes:
        eps, step, steps: of the ascent.
        seeds: starts for each class.
        recipe: of the training of the judge.
        averaged: forward passes averaged for each gradient of a randomised model.
    """

    learns: ClassVar[bool] = True

    eps: Positive = 8.0
    step: Positive = 0.5
    steps: Count = 60
    seeds: Count = 3
    recipe: Recipe = RECIPE
    averaged: Count = 4

    def quick(self) -> Self:
        return replace(self, steps=2, seeds=1, recipe=replace(self.recipe, epochs=1))

    def learn(self, oracle: Oracle, data: ImageSet, threat: ThreatModel, draws: Draws) -> Classifier:
        """The judge."""
        like = next(oracle.model.parameters())
        judge = oracle.model.fresh(derive_seed(draws.seed, "judge")).to(like.device, like.dtype).requires_grad_(True)
        train(judge, data, self.recipe, derive_seed(draws.seed, "judge"))
        return judge.requires_grad_(False)

    def run(
        self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws, lesson: Lesson = None
    ) -> dict[str, Any]:
        first = oracle.as_attacked(self.averaged)[:1]  # the images belong to no sample; they are counted on the first
        wanted = torch.arange(oracle.num_classes, device=x.device).repeat_interleave(self.seeds)
        streams = Draws(draws.seed, torch.arange(len(wanted), device=x.device)).child("class images")
        shape = tuple(x.shape[1:])
        start = (0.5 + 0.02 * streams.normal(shape, purpose="start").to(x)).clamp(0, 1)
        image = start
        for _ in range(self.steps):
            g = first.gradient(image, partial(ops.cross_entropy, y=wanted))[0]
            image = ops.project(image - self.step * ops.normalise(g, "l2"), start, "l2", self.eps)
        far = ops.size(image - start, "l2")
        noise = ops.normalise(streams.normal(shape, purpose="chance").to(x), "l2")
        control = (start + ops.over(far, noise) * noise).clamp(0, 1)

        judged = oracle.of(lesson)
        metrics = {
            "own_accept": _accepted(first, image, wanted),
            "cross_accept": _accepted(judged[:1], image, wanted),
            "cross_chance": _accepted(judged[:1], control, wanted),
            "judge_acc": float((judged.labels(x) == y).double().mean()),
        }
        pictures = _maps.side_by_side(start, image)[:: self.seeds][:SHOWN]
        return {"metrics": metrics, "flags": [], "pictures": pictures}


def _accepted(oracle: Oracle, image: Tensor, wanted: Tensor) -> float:
    return float((oracle.labels(image) == wanted).double().mean())
