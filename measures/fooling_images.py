"""Fooling images: unrecognisable images that the victim classifies with high confidence."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from siegebench import ops
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.stats import auroc
from siegebench.threat import ThreatModel
from siegebench.types import Count, Measure, Positive, Share

EARLY, LATE = 0.03, 0.1  # targeted increase of the probability p per step: at most, and as a fraction of 1 - p
LONGEST = 1e12 / 255**2  # largest learning rate; the authors' 1e12 is for pixels in 0..255
DONE = 0.9999  # the ascent of an image stops above this probability
HALVED = 1000  # generations after which the mutation rate is halved


@dataclass(frozen=True, kw_only=True)
class FoolingImages(Measure):
    """Makes images from noise that the victim assigns to a given class with high confidence.

    Nguyen, Yosinski, Clune, "Deep Neural Networks are Easily Fooled: High Confidence Predictions for Unrecognizable
    Images", CVPR 2015, arXiv 1412.1897.
        gradient    from the mean image plus N(0, 1 / 255): X += lr g, X -= decay (X - mean), clip; g is the gradient of
                    the probability p of the class, lr = min(0.03, 0.1 (1 - p)) / |g|^2. `classes` classes are drawn,
                    with `seeds` images each. The best point of an ascent is kept. An ascent stops at p > 0.9999, or
                    when the gradient is zero.
        evolution   MAP-Elites, direct encoding: from uniform pixels, one elite for each class of the victim. A
                    generation draws `population` parents from the elites and changes each pixel with probability
                    `rate` (halved every 1,000 generations) by polynomial mutation. A child replaces the elite of every
                    class for which its confidence is higher.
    Metrics, on fresh forward passes: median_confidence (p of the wanted class) and share_above_99 over the images.
    share_classes_found, the fraction of classes with an image that the victim assigns to that class. detection_auroc,
    how well the largest softmax alone separates the given clean images (positive) from these: 0.5 means not at all, and
    less than 0.5 means that the victim is more confident on the fooling images.

    Random: classes and starts (gradient), or starts, parents and mutations (evolution). None depends on the given
    images, of which only the mean image and the confidences are used.

    Cost: at most classes x seeds x steps forward and backward passes, or population x (steps + 1) forward passes. All
    are counted on the first image.

    Differs from the paper: the mean image is that of the given clean images, not of a training set. An ascent stops at
    0.9999; the paper's continues. No blur and no pruning of small pixels. No indirect (CPPN) encoding. The detector is
    ours.

    Attributes:
        method: `gradient` or `evolution`.
        steps: of each ascent, or generations.
        classes: number of classes for the gradient method, at most.
        seeds: images per class for the gradient method.
        decay: fraction of the difference from the mean image that a step removes.
        population: children per generation.
        rate: probability that a pixel changes.
        eta_m: of the polynomial mutation; a larger value makes smaller changes.
        averaged: forward passes averaged for each output of a randomised model.
    """

    method: Literal["gradient", "evolution"] = "gradient"
    steps: Count = 300
    classes: Count = 20
    seeds: Count = 3
    decay: Share = 0.01
    population: Count = 400
    rate: Share = 0.1
    eta_m: Positive = 15.0
    averaged: Count = 4

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> dict[str, Any]:
        adaptive = oracle.as_attacked(self.averaged)
        clean = adaptive.logits(x).softmax(dim=1).amax(dim=1)
        first = adaptive[:1]  # the images belong to no sample; their cost is counted on the first one
        images, wanted = (self._climb if self.method == "gradient" else self._evolve)(first, x.mean(dim=0), draws)

        p = first.logits(images).softmax(dim=1).double()
        confidence = p.gather(1, wanted[:, None]).squeeze(1)
        classes = wanted.unique()
        found = wanted[p.argmax(dim=1) == wanted].unique()
        metrics = {
            "images": float(len(images)),
            "median_confidence": float(confidence.quantile(0.5)),
            "share_above_99": float((confidence > 0.99).double().mean()),
            "share_classes_found": len(found) / len(classes),
            "detection_auroc": auroc(positive=clean.double().cpu().numpy(), negative=p.amax(dim=1).cpu().numpy()),
        }
        return {"metrics": metrics, "flags": []}

    def _climb(self, oracle: Oracle, mean: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """(the image of highest confidence of each ascent, its class)"""
        one = Draws(draws.seed, torch.zeros(1, dtype=torch.long, device=mean.device))
        classes = one.uniform((oracle.num_classes,), purpose="classes")[0].argsort()[: self.classes].sort().values
        wanted = classes.repeat_interleave(self.seeds)
        number = wanted * self.seeds + torch.arange(self.seeds, device=mean.device).repeat(len(classes))
        noise = Draws(draws.seed, number).normal(tuple(mean.shape), purpose="start").to(mean)
        image = mean + noise / 255
        best, top = image.clamp(0, 1), torch.full_like(image[:, 0, 0, 0], -1.0)
        live = torch.arange(len(wanted), device=mean.device)
        for _ in range(self.steps):
            image = image.clamp(0, 1)
            g, _, p = oracle.gradient(image, partial(_probability, k=wanted[live]))
            better = p > top[live]
            best[live] = torch.where(ops.over(better, image), image, best[live])
            top[live] = torch.where(better, p, top[live])

            length = ops.size(g.double(), "l2")  # squares of small gradients underflow in float32
            on = ((p <= DONE) & (length > 0)).nonzero().squeeze(1)
            if not len(on):
                break
            live, image, g, p, length = live[on], image[on], g[on], p[on], length[on]
            lr = ((LATE * (1 - p)).clamp(max=EARLY) / length**2).clamp(max=LONGEST)
            image = mean + (1 - self.decay) * (image + ops.over(lr, g).to(g) * g - mean)
        return best, wanted

    def _evolve(self, oracle: Oracle, mean: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """(the elite of each class, its class)"""
        count, shape = oracle.num_classes, tuple(mean.shape)
        streams = Draws(draws.seed, torch.arange(self.population, device=mean.device)).child("evolution")
        elite, fitness = mean.new_zeros(count, *shape), mean.new_full((count,), -1.0)
        child = streams.uniform(shape, 0, "start").to(mean)
        for t in range(self.steps + 1):
            p, index = oracle.logits(child).softmax(dim=1).max(dim=0)
            better = p > fitness
            elite = torch.where(ops.over(better, elite), child[index], elite)
            fitness = torch.where(better, p, fitness)
            if t == self.steps:
                break
            parent = elite[streams.integers(count, (), t, "parent")]
            changed = streams.uniform(shape, t, "pixels") < self.rate * 0.5 ** (t // HALVED)
            child = (parent + torch.where(changed, self._mutation(streams, shape, t).to(mean), 0)).clamp(0, 1)
        return elite, torch.arange(count, device=mean.device)

    def _mutation(self, streams: Draws, shape: tuple[int, ...], t: int) -> Tensor:
        """Polynomial mutation: changes in [-1, 1], mostly small."""
        u = streams.uniform(shape, t, "mutation")
        power = 1 / (self.eta_m + 1)
        return torch.where(u < 0.5, (2 * u) ** power - 1, 1 - (2 * (1 - u)) ** power)


def _probability(z: Tensor, k: Tensor) -> Tensor:
    """Softmax of the class k, [n]."""
    return z.softmax(dim=1).gather(1, k[:, None]).squeeze(1)
