"""UnitShift: the units of the last feature map that an attack moves, and those that its target class depends on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from siegebench.draws import Draws
from siegebench.errors import ConfigError, NotApplicable
from siegebench.oracle import Oracle
from siegebench.threat import Norm, ThreatModel
from siegebench.types import Attack, Count, Measure


@dataclass(frozen=True, kw_only=True)
class UnitShift(Measure):
    """Whether attacks towards a class change the few units that this class depends on.

    Bau et al., "Understanding the role of individual units in a deep neural network", PNAS 2020, arXiv 2009.05041. A
    unit is a channel of the last feature map a(x). Each image is moved towards a class t; of those that reach it:
        I_t     the units that lower p_t most when each is set to 0, mean over images predicted as t
        S_t     the units that the attacks towards t move most, mean |a(x_adv) - a(x)|
        overlap, overlap_expected   mean |I_t and S_t| / k, and k / C, what k of C units drawn at random would give
        undone            share of the attacks whose image gets its true class again if the units S_t are set to their
                          values for x
        undone_random, undone_active, undone_important   the same for k random units, for the k most active on x_adv
                          that are not in S_t, and for I_t
    Classes that no image reaches, or that no given image is predicted as, are left out.

    Random: the target of each image, the random units; what the attack draws.

    Cost: the attack, C + 7 forward passes for each image.

    Differs from the paper: units of the classifier that is measured, not of VGG-16: the output of its last convolution
    or batch norm. Importance is measured on given images of the class.

    Attributes:
        units: k, at most half of the channels.
        attack: what moves the images; it must be able to aim.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("l2", "linf")

    units: Count = 20
    attack: Attack

    def __post_init__(self) -> None:
        if not self.attack.can_aim() or self.attack.learning() or self.attack.exploring():
            name = getattr(self.attack, "_name", type(self.attack).__name__)
            raise ConfigError(f"unit_shift: attack {name!r} cannot aim at a class, or learns first; use pgd or cw")

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> dict[str, Any]:
        if threat.norm not in self.attack.handles():
            raise NotApplicable(f"the inner attack handles {', '.join(self.attack.handles())}, not {threat.norm}")
        asked = oracle.frozen()
        goal = (y + 1 + draws.integers(oracle.num_classes - 1, purpose="target").to(y)) % oracle.num_classes
        moved = self._moved(oracle, x, y, goal, threat, draws)
        clean, shifted = maps(asked, x), maps(asked, moved)
        reached = (asked.labels(moved) == goal) & (threat.size(moved, x) <= threat.limit)
        channels, k = clean.shape[1], max(1, min(self.units, clean.shape[1] // 2))
        metrics = {"reached": float(reached.double().mean()), "channels": float(channels), "units": float(k)}
        important = importance(asked, x, clean)
        predicted = asked.labels(x)
        known = torch.stack([(predicted == t).any() for t in range(oracle.num_classes)])
        rows = (reached & known[goal]).nonzero().squeeze(1)
        if not len(rows):
            return {"metrics": metrics, "flags": []}
        shift, active = _mean(shifted - clean), _mean(shifted)
        masks = {name: torch.zeros(len(rows), channels, dtype=torch.bool, device=x.device) for name in NAMES}
        overlap = []
        for t in goal[rows].unique():
            here = goal[rows] == t
            i_t = important[predicted == t].mean(dim=0).topk(k).indices
            s_t = shift[rows[here]].mean(dim=0).topk(k).indices
            others = active[rows[here]].mean(dim=0).index_fill(0, s_t, -1.0)
            drawn = Draws(draws.seed, torch.arange(channels)).child(int(t)).order("units")[:k].to(x.device)
            overlap.append(float(torch.isin(i_t, s_t).double().mean()))
            for name, chosen in zip(NAMES, (s_t, drawn, others.topk(k).indices, i_t), strict=True):
                masks[name][here.nonzero(), chosen] = True
        metrics |= {"overlap": sum(overlap) / len(overlap), "overlap_expected": k / channels}
        for name, mask in masks.items():
            back = asked[rows].tapped(_clamped(mask, clean[rows])).labels(moved[rows])
            metrics[name] = float((back == y[rows]).double().mean())
        return {"metrics": metrics, "flags": []}

    def _moved(self, oracle: Oracle, x: Tensor, y: Tensor, goal: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
        """What the attack makes of the images; its passes are counted on the given oracle."""
        aimed = Oracle(oracle.model, threat, draws.child("targeted"), goal=goal)
        moved = self.attack(aimed, x, y, threat, draws.child("attack"))
        for name in ("forwards", "backwards", "queries"):
            getattr(oracle.ledger, name).index_add_(0, oracle.rows, getattr(aimed.ledger, name))
        return moved


NAMES = ("undone", "undone_random", "undone_active", "undone_important")


def maps(oracle: Oracle, x: Tensor) -> Tensor:
    """The last feature map of each image, [n, C, H, W]."""
    seen: list[Tensor] = []

    def read(a: Tensor) -> Tensor:
        seen.append(a)
        return a

    oracle.tapped(read).labels(x)
    return torch.cat(seen)


def importance(oracle: Oracle, x: Tensor, a: Tensor) -> Tensor:
    """How much the probability of its predicted class falls when each unit is set to 0, [n, C].

    Args:
        a: the maps of x, [n, C, H, W].
    """
    label = oracle.labels(x)[:, None]
    before = oracle.logits(x).softmax(dim=1).gather(1, label)
    fallen = []
    for c in range(a.shape[1]):
        mask = torch.zeros(len(x), a.shape[1], dtype=torch.bool, device=x.device)
        mask[:, c] = True
        z = oracle.tapped(_clamped(mask, torch.zeros_like(a))).logits(x)
        fallen.append(before - z.softmax(dim=1).gather(1, label))
    return torch.cat(fallen, dim=1)


def _clamped(mask: Tensor, values: Tensor) -> Callable[[Tensor], Tensor]:
    """A tap that sets the units of a mask [n, C] to given values [n, C, H, W]."""
    return lambda a: torch.where(mask[..., None, None], values, a)


def _mean(a: Tensor) -> Tensor:
    return a.abs().mean(dim=(2, 3))
