"""Membership inference: whether the loss of an image reveals that the network was trained on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from siegebench import ops
from siegebench.cells import Flag
from siegebench.data import ImageSet, stratified
from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from siegebench.layers import batches
from siegebench.oracle import Oracle
from siegebench.stats import auroc, auroc_interval
from siegebench.threat import ThreatModel
from siegebench.types import Count, Lesson, Measure

Vector = np.ndarray[Any, Any]
ALARMS = {"1": 0.01, "0_1": 0.001}  # false positives, by the ending of the metric


@dataclass(frozen=True, kw_only=True)
class Membership(Measure):
    """AUROC, and true positives at a low false positive rate, of training against test images, with score -loss.

    Yeom, Giacomelli, Fredrikson, Jha, "Privacy Risk in Machine Learning: Analyzing the Connection to Overfitting", CSF
    2018 (the threshold on the loss); Carlini, Chien, Nasr, Song, Terzis, Tramer, "Membership Inference Attacks From
    First Principles", IEEE S&P 2022 (true positives at few false positives). The second score, `calibrated`,
    subtracts the mean loss of the image's class on test images that the attacker knows (Song, Mittal, USENIX Security
    2021), because some classes are harder than others.

    The test images are halved by their ids. The attacker knows the first half, and has to distinguish the second half
    from training images. Metrics:
        auroc_loss, auroc_calibrated            0.5 if nothing is told; *_low and *_high are a 95 % interval
        tpr_loss_1, tpr_calibrated_1            true positives at 1 % false positives; `_0_1` at 0.1 %. Given if there
                                                are as many non-members as one false positive needs
        auroc_control                           the two halves of the test images; must be at 0.5
        advantage                               training minus test accuracy: the part that overfitting explains

    Training and test images must be of different people, tracks or scenes: frames of a video that is also in the
    training set are not non-members.

    Random: the training images if there are more than `images`; the halves.

    Differs from the paper: no shadow networks, so that it is a lower bound of what an attacker learns.

    Attributes:
        images: training images that are used, at most.
        averaged: forward passes averaged for each answer of a randomised model.
    """

    learns: ClassVar[bool] = True
    every: ClassVar[bool] = True

    images: Count = 2000
    averaged: Count = 9

    def learn(self, oracle: Oracle, data: ImageSet, threat: ThreatModel, draws: Draws) -> Lesson:
        """(losses, labels, right answers) of training images."""
        index = stratified(data, self.images, draws.seed) if len(data) > self.images else torch.arange(len(data))
        y, device = data.labels[index], oracle.draws.ids.device
        part = self._answers(oracle)[index.to(device)]
        z = torch.cat([part[i.to(device)].logits(data.pixels(index[i], oracle.dtype).to(device)).cpu()
                       for i in batches(data.stored.select(index), device)])  # fmt: skip
        return _losses(z, y), y.numpy(), (z.argmax(dim=1) == y).numpy()

    def run(
        self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws, lesson: Lesson = None
    ) -> dict[str, Any]:
        members, labels, right = lesson
        z = self._answers(oracle).logits(x).cpu()
        losses, classes = _losses(z, y.cpu()), y.cpu().numpy()
        known = np.zeros(len(x), dtype=bool)
        known[draws.order("halves").cpu().numpy()[: len(x) // 2]] = True
        if len(x) < 4:
            raise NotApplicable(f"membership compares two halves of the images, and there are {len(x)}")
        base = _by_class(losses[known], classes[known], oracle.num_classes)
        metrics: dict[str, float] = {
            "auroc_control": auroc(positive=-losses[known], negative=-losses[~known]),
            "advantage": float(right.mean() - (z.argmax(dim=1).cpu().numpy() == classes).mean()),
            "members": float(len(members)), "non_members": float((~known).sum()),
        }  # fmt: skip
        scored = {"loss": (-members, -losses[~known]),
                  "calibrated": (base[labels] - members, base[classes[~known]] - losses[~known])}  # fmt: skip
        for name, (inside, outside) in scored.items():
            metrics[f"auroc_{name}"] = auroc(positive=inside, negative=outside)
            low, high = auroc_interval(positive=inside, negative=outside)
            metrics |= {f"auroc_{name}_low": low, f"auroc_{name}_high": high}
            metrics |= {f"tpr_{name}_{ending}": tpr(inside, outside, rate)
                        for ending, rate in ALARMS.items() if rate * len(outside) >= 1}  # fmt: skip
        low, high = auroc_interval(positive=-losses[known], negative=-losses[~known])
        flags = []
        if not low <= 0.5 <= high:
            told = f"the halves of the test images differ: AUROC {metrics['auroc_control']:.3f} [{low:.3f}, {high:.3f}]"
            flags.append(Flag("control_differs", "info", told).as_dict())
        return {"metrics": metrics, "flags": flags}

    def _answers(self, oracle: Oracle) -> Oracle:
        return oracle.averaged(self.averaged) if oracle.model.randomized else oracle


def _losses(z: Tensor, y: Tensor) -> Vector:
    """Cross-entropy in double precision: those of members are tiny, and must not tie at 0."""
    return np.asarray(ops.cross_entropy(z.double(), y).numpy())


def _by_class(losses: Vector, classes: Vector, count: int) -> Vector:
    """The mean loss of each class, [count]; of all images for classes without any."""
    sums = np.bincount(classes, weights=losses, minlength=count)
    counts = np.bincount(classes, minlength=count)
    return np.where(counts > 0, sums / np.maximum(counts, 1), losses.mean())


def tpr(inside: Vector, outside: Vector, rate: float) -> float:
    """Members above the threshold that at most `rate` of the non-members exceed."""
    threshold = np.sort(outside)[::-1][int(rate * len(outside))]
    return float((inside > threshold).mean())
