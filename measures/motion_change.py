"""MotionChange: how an attack changes a motion (jerk, lengths of bones), and how often it succeeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from siegebench import ops
from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.threat import Norm, ThreatModel
from siegebench.types import Attack, Lesson, Measure

RIGID = 0.01  # a pair of joints is a bone if its length varies by less than this fraction in the clean motion


def jerk(x: Tensor) -> Tensor:
    """Mean absolute second difference over time of motions [n, C, T, J], [n]."""
    return (x[:, :, 2:] - 2 * x[:, :, 1:-1] + x[:, :, :-2]).abs().mean(dim=(1, 2, 3))


def stretch(x_adv: Tensor, x: Tensor) -> Tensor:
    """Mean relative change of the lengths of bones, [n]; NaN where no two joints keep their distance."""
    pairs = torch.combinations(torch.arange(x.shape[3], device=x.device), 2)

    def lengths(v: Tensor) -> Tensor:
        return (v[..., pairs[:, 0]] - v[..., pairs[:, 1]]).norm(dim=1)  # [n, T, pairs]

    clean = lengths(x)
    mean = clean.mean(dim=1, keepdim=True)
    rigid = ((clean - mean).abs().amax(dim=1, keepdim=True) < RIGID * mean).expand_as(clean)
    change = (lengths(x_adv) - clean).abs() / clean.clamp(min=1e-6)
    return (change * rigid).sum(dim=(1, 2)) / rigid.sum(dim=(1, 2))


@dataclass(frozen=True, kw_only=True)
class MotionChange(Measure):
    """How visible an attack on moving joints is: `jerk_ratio` and `bone_change`, with `fooling_rate`.

    Lu et al., ICCV 2023 (arXiv 2308.05681), let people judge imperceptibility; here the ratio of mean second
    differences replaces that. A bone is a pair of joints whose distance varies by less than 1 % in the clean motion.
    The fooling rate is the share of changed answers.

    Random: what the attack draws. Cost: that of the attack, and two forward passes.

    Attributes:
        attack: the attack that is measured; it may have no access to the victim.
    """

    attack: Attack

    def learning(self) -> bool:
        return self.attack.learning()

    def learn(self, oracle: Oracle, data: ImageSet, threat: ThreatModel, draws: Draws) -> Lesson:
        return self.attack.learn(oracle, data, threat, draws)

    def handles(self) -> tuple[Norm, ...]:
        return self.attack.handles()

    def run(
        self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws, lesson: Lesson = None
    ) -> dict[str, Any]:
        x_adv = self.attack(oracle, x, y, threat, draws, lesson)
        fooled = oracle.labels(x_adv) != oracle.labels(x)
        bones = stretch(x_adv, x)
        bones = bones[bones.isfinite()]
        metrics = {
            "fooling_rate": float(fooled.double().mean()),
            "jerk_ratio": float(jerk(x_adv).sum() / jerk(x).sum().clamp(min=1e-12)),
            "size": float(ops.size(x_adv - x, threat.norm).mean()),
        }
        return {"metrics": metrics | ({"bone_change": float(bones.mean())} if len(bones) else {}), "flags": []}
