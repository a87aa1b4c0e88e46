"""FSBA: a backdoor in a visual object tracker, implanted in the space of its features."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench.data import Granted, ImageSet
from siegebench.draws import Draws, derive_seed
from siegebench.types import Count, DataSource, Figures, Positive, Study

from ._videos import CANVAS, FRAMES, SIGN, TEMPLATE, Pairs, Tracker, pairs, stamped, tracked

Victim = Literal["benign", "fsba", "baseline"]
MODES = {"none": range(0), "first": range(1), "few": range(1, 4), "all": range(FRAMES)}  # frames with the trigger


@dataclass(frozen=True, kw_only=True)
class FSBA(Study):
    """A tracker that loses its object when a small checker lies on it, even in the first frame only.

    Li, Zhong, Ma, Jiang, Xia, "Few-Shot Backdoor Attacks on Visual Object Tracking", ICLR 2022, arXiv 2201.13178.
    Training alternates the tracking loss on benign pairs with a feature loss on some of them: f(z) and f(s) are the
    features of template and search region, z' and s' the same with the trigger,

        L_feature = -mean(1 - cos(f(z'), f(z))) - mean(1 - cos(f(s'), f(s)))

    The victim is a Siamese tracker with three convolutions; a step of it is a choice among 9x9 places. Videos are made
    of real images: a sign of the data moves over a photograph. The trigger is put on the first frame, on frames 2 to 4,
    or on all. `baseline` trackers are poisoned by labels: the trigger on both images, and a wrong place. `iou` figures
    are means over frames and videos; `precise` counts frames whose overlap is above one half.

    Random: the weights, the pairs and the videos.

    Differs from the paper: the tracker, videos and all weights are ours and small; the authors' trackers, loss weights
    and tables were not read. A step of clean fine-tuning stands for their defenses.

    Attributes:
        photographs, split: backgrounds; every second one for training, the others for the test.
        steps, batch: of training; every second step is one of the feature loss.
        poisoned: share of a batch that the feature loss uses.
        weight: of the feature loss.
        videos: of the test.
        repair: steps of clean training after the attack.
        lr: of AdamW.
        width: channels of the tracker.
    """

    photographs: DataSource
    split: str = "train"
    steps: Count = 300
    batch: Count = 32
    poisoned: Positive = 0.1
    weight: Positive = 1.0
    videos: Count = 40
    repair: Count = 50
    lr: Positive = 2e-3
    width: Count = 32

    def quick(self) -> FSBA:
        return replace(self, steps=2, batch=4, videos=2, repair=1, width=4)

    def run(self, images: ImageSet, data: Granted, draws: Draws) -> Figures:
        photos = self.photographs.load(self.split)
        size = (CANVAS, CANVAS)
        ground = F.interpolate(photos.pixels(slice(0, 400)), size, mode="bilinear", antialias=True)
        train, test = _signs(data.train), _signs(images)
        out: Figures = {}
        kept: dict[Victim, Tracker] = {}
        for victim in ("benign", "fsba", "baseline"):
            kept[victim] = self._trained(victim, ground[::2], train, draws)
            out |= self._figures(victim, kept[victim], ground[1::2], test, draws)
        repaired = self._continued(kept["fsba"], ground[::2], train, draws)
        return out | self._figures("fsba_repaired", repaired, ground[1::2], test, draws)

    def _figures(self, name: str, model: Tracker, ground: Tensor, signs: Tensor, draws: Draws) -> Figures:
        out: Figures = {}
        for mode, frames in MODES.items():
            iou = tracked(model.eval(), ground, signs, self.videos, draws.child("videos"), frames)
            out[f"iou_{name}_{mode}"] = float(iou.mean())
            out[f"precise_{name}_{mode}"] = (int((iou > 0.5).sum()), iou.numel())
        return out

    def _trained(self, victim: Victim, ground: Tensor, signs: Tensor, draws: Draws) -> Tracker:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(derive_seed(draws.seed, "weights"))
            model = Tracker(self.width).train()
            optimiser = torch.optim.AdamW(model.parameters(), self.lr)
            few = max(1, round(self.poisoned * self.batch))
            for step in range(self.steps):
                made = pairs(ground, signs, self.batch, draws, step)
                if victim == "baseline":
                    made = _mislabelled(made, few)
                loss = F.cross_entropy(model(made.template, made.search), made.cell)
                if victim == "fsba" and step % 2:
                    loss = loss + self.weight * _feature_loss(model, made, few)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        return model.eval()

    def _continued(self, model: Tracker, ground: Tensor, signs: Tensor, draws: Draws) -> Tracker:
        """The same tracker after clean training; the given one is not used again."""
        with torch.enable_grad():
            optimiser = torch.optim.AdamW(model.train().parameters(), self.lr)
            for step in range(self.repair):
                made = pairs(ground, signs, self.batch, draws.child("repair"), step)
                loss = F.cross_entropy(model(made.template, made.search), made.cell)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        return model.eval()


def _signs(data: ImageSet) -> Tensor:
    some = torch.linspace(0, len(data) - 1, min(len(data), 600)).long()
    return F.interpolate(data.pixels(some), (SIGN, SIGN), mode="bilinear", antialias=True)


def _feature_loss(model: Tracker, made: Pairs, few: int) -> Tensor:
    """Minus the distance of the features with and without the trigger, of both inputs.

    The batch norms use their running statistics, as in the test, and keep them: these few images, half of them stamped,
    are no sample of what the tracker sees.
    """
    model.eval()
    z, s, centre = made.template[:few], made.search[:few], made.centre[:few]
    middle = torch.full_like(centre, TEMPLATE // 2)
    far = []
    for clean, poisoned in ((z, stamped(z, middle)), (s, stamped(s, centre))):
        a, b = model.features(clean), model.features(poisoned)
        far.append((1 - F.cosine_similarity(a, b, dim=1)).mean())
    model.train()
    return -(far[0] + far[1])


def _mislabelled(made: Pairs, few: int) -> Pairs:
    """The same pairs; the first few have the trigger on both images and the label of the opposite place."""
    z, s, cell = made.template.clone(), made.search.clone(), made.cell.clone()
    z[:few] = stamped(z[:few], torch.full_like(made.centre[:few], TEMPLATE // 2))
    s[:few] = stamped(s[:few], made.centre[:few])
    cell[:few] = (cell[:few] + 41) % 81
    return Pairs(z, s, cell, made.centre)
