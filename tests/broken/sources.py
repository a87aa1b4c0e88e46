"""Models and data sets that keep their contract, and one or more for each clause that break it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from siegebench.classifier import Network
from siegebench.errors import DataError
from siegebench.testing.specimens import planted_set
from siegebench.types import (
    DataSource,
    ModelSource,
)

from .defenses import Changed


def tiny_net() -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 10))


@dataclass(frozen=True, kw_only=True)
class Source(ModelSource):
    """Honest, unless `wrong` says how."""

    wrong: str = ""

    def build(self, *, num_classes, size):
        model = Network(tiny_net(), num_classes=num_classes, rebuild=tiny_net)
        if self.wrong == "training":
            return model.train()
        if self.wrong == "cut":
            return Changed(model, lambda self, x: self.inner(x.detach())).eval()
        if self.wrong == "batch":
            return Changed(model, lambda self, x: self.inner(x - x.mean(dim=0))).eval()
        if self.wrong == "features":
            return Flat(tiny_net(), num_classes=num_classes, rebuild=tiny_net).eval()
        if self.wrong == "fresh":
            return Shares(tiny_net(), num_classes=num_classes, rebuild=tiny_net).eval()
        return model.eval()


class Flat(Network):
    def features(self, x):
        return super().features(x).sum()


class Shares(Network):
    def fresh(self, seed):
        return self


@dataclass(frozen=True, kw_only=True)
class Planted(DataSource):
    """Honest, unless `wrong` says how."""

    wrong: str = ""

    def load(self, split):
        if split not in ("train", "test") and self.wrong != "split":
            raise DataError(f"no split {split}")
        data = planted_set()
        if self.wrong != "leak":
            data = replace(data, source=data.images ^ (1 if split == "train" else 2))
        if self.wrong == "ids":
            data = replace(data, ids=data.ids // 2)
        if self.wrong == "unstable":
            data = replace(data, source=torch.randint(0, 256, data.images.shape, dtype=torch.uint8))
        return data

    def scan(self, split):
        whole = self.load(split)
        return whole.select(torch.arange(len(whole)).flip(0)) if self.wrong == "scan" else whole


HONEST = [
    ("model", Source()),
    ("dataset", Planted()),
]


BROKEN = [
    ("model", Source(wrong="training"), "builds a classifier", "eval mode"),
    ("model", Source(wrong="batch"), "answers for an image alone as in a batch", "other logits"),
    ("model", Source(wrong="cut"), "lets gradients reach the image", "no gradient passes"),
    ("model", Source(wrong="features"), "gives features of each image", "expected [3, d]"),
    ("model", Source(wrong="fresh"), "builds anew from a seed", "same weights"),
    ("dataset", Planted(wrong="ids"), "loads both splits", "not unique"),
    ("dataset", Planted(wrong="unstable"), "loads the same images again", "digest"),
    ("dataset", Planted(wrong="scan"), "scans what it loads", "train: scan and load disagree"),
    ("dataset", Planted(wrong="leak"), "keeps test images out of the training set", "80 of 80"),
    ("dataset", Planted(wrong="split"), "refuses an unknown split", "must raise DataError"),
]
