"""ShortcutBias: which of several predictive features a network uses when they disagree."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from siegebench.cells import Flag
from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.errors import DataError
from siegebench.oracle import Oracle
from siegebench.prepare import at_once
from siegebench.threat import Norm, ThreatModel
from siegebench.types import DataSource, Measure

PASSES = 9  # averaged for each answer of a randomised model
LEARNT = 2.0  # standard errors above chance, for a model that has learnt something


@dataclass(frozen=True, kw_only=True)
class ShortcutBias(Measure):
    """How often the answers of a network follow the core and how often the cue, on images in which they disagree.

    Two protocols, each for the data sources that have its splits:
        conflict   reliance = P[the cue's class] - P[the core's class] on the splits `cue` and `core`; `bias` is the
                   reliance minus that of the best decision (split `ideal`, if there is one), in [-2, 2]. After Hermann,
                   Mobahi, Fel, Mozer, "On the Foundations of Shortcut Learning", ICLR 2024, arXiv 2310.16228
        wcst       `acc_CUE` on the split of each cue, whose labels are its levels; `preferred`, the largest of them;
                   `entropy` of what they are above chance as shares, in units of log F: 0 if the network follows one
                   cue, 1 if all F alike. Scimeca, Oh, Chun, Poli, Yun, "Which Shortcut Cues Will DNNs Choose?", ICLR
                   2022, arXiv 2110.03095
    `acc` is the accuracy on the split `test`. `bias_low` and `bias_high` are a 95 % interval for these images. A model
    that is no better than chance on `test` gets the flag `nothing_learnt`: its bias says nothing.

    Random: only the noise of a randomised model.

    Cost: one forward pass for each image of `test` and of the images apart.

    Differs from the paper: the formula of the bias was not found and is ours. A low `acc_CUE` may mean that the cue
    is hard to learn: to test this, train on `planted_cues` with `remedy: CUE`.

    Attributes:
        data: the source that the network was trained on: planted_features, planted_glyphs, planted_cues, shortcut, or
            another with these splits.
        protocol: `conflict` or `wcst`.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1", "l0")

    data: DataSource
    protocol: Literal["conflict", "wcst"] = "conflict"

    def __post_init__(self) -> None:
        known = self.data.known_splits()
        wanted = ("core", "cue") if self.protocol == "conflict" else ()
        missing = [s for s in wanted if s not in known]
        if missing or (not wanted and len(known) < 4):
            needs = "core and cue" if wanted else "a split for each cue"
            raise DataError(f"shortcut_bias: protocol {self.protocol} needs {needs}; the data has {', '.join(known)}")

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> dict[str, Any]:
        test = self.data.load("test")
        if test.num_classes != oracle.num_classes:
            raise DataError(
                f"shortcut_bias: {test.name} has {test.num_classes} classes, the network {oracle.num_classes}; give "
                "the data that it was trained on"
            )
        if test.kind.channels != oracle.model.kind.channels:
            raise DataError(
                f"shortcut_bias: images of {test.name} have {test.kind.channels} channels, the network takes "
                f"{oracle.model.kind.channels}; give the data that it was trained on"
            )
        acc, n = float((self._labels(oracle, test, draws.seed) == test.labels).double().mean()), len(test)
        chance = float(test.labels.bincount().max()) / n
        flags = []
        if acc < chance + LEARNT * math.sqrt(chance * (1 - chance) / n):
            told = f"accuracy {100 * acc:.1f} % on {test.name}, the largest class has {100 * chance:.1f} %"
            flags.append(Flag("nothing_learnt", "flag", told).as_dict())
        of = self._conflict if self.protocol == "conflict" else self._wcst
        return {"metrics": {"acc": acc, **of(oracle, draws.seed)}, "flags": flags}

    def _conflict(self, oracle: Oracle, seed: int) -> dict[str, float]:
        core = self.data.load("core")
        cue, label = self.data.load("cue").labels, self._labels(oracle, core, seed)
        followed = (label == cue).double() - (label == core.labels).double()
        reliance = float(followed.mean())
        out = {"core": float((label == core.labels).double().mean()), "reliance": reliance}
        out["cue"] = float((label == cue).double().mean())
        best = torch.zeros_like(followed)
        if "ideal" in self.data.known_splits():
            ideal = self.data.load("ideal").labels
            best = (ideal == cue).double() - (ideal == core.labels).double()
            out["reliance_ideal"] = float(best.mean())
        apart = followed - best
        half = 1.96 * float(apart.std(correction=0)) / math.sqrt(len(apart))
        bias = float(apart.mean())
        return out | {"bias": bias, "bias_low": bias - half, "bias_high": bias + half}

    def _wcst(self, oracle: Oracle, seed: int) -> dict[str, float]:
        cues = [s for s in self.data.known_splits() if s not in ("train", "test")]
        first = self.data.load(cues[0])
        label = self._labels(oracle, first, seed)  # the splits have the same images
        acc = {cue: float((label == self.data.load(cue).labels).double().mean()) for cue in cues}
        above = torch.tensor([max(0.0, a - 1 / first.num_classes) for a in acc.values()], dtype=torch.float64)
        out = {f"acc_{cue}": a for cue, a in acc.items()} | {"preferred": max(acc.values())}
        if float(above.sum()) > 0:
            share = above / above.sum()
            out["entropy"] = float((share * share.clamp(min=1e-12).log()).sum().abs()) / math.log(len(cues))
        return out

    @staticmethod
    def _labels(oracle: Oracle, data: ImageSet, seed: int) -> Tensor:
        """Top-1 labels of images of other splits, on the CPU; their passes are counted with the first image given."""
        device = oracle.rows.device
        asked = Oracle(oracle.model, oracle.threat, Draws(seed, data.ids.to(device)))
        asked = asked.averaged(PASSES) if oracle.model.randomized else asked
        parts = []
        for index in torch.arange(len(data)).split(at_once(data.stored, device)):
            parts.append(asked[index.to(device)].labels(data.pixels(index, oracle.dtype).to(device)).cpu())
        for name in ("forwards", "queries"):
            getattr(oracle.ledger, name)[oracle.rows[:1]] += getattr(asked.ledger, name).sum()
        return torch.cat(parts)
