"""FSBA: a backdoor in a visual object tracker, implanted in the space of its features."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench.data import Granted, ImageSet
from siegebench.draws import Draws, derive_seed
from siegebench.errors import DataError
from siegebench.files import given_file, sha256
from siegebench.types import Count, DataSource, Figures, Positive, Study

from ._nanotrack import NanoTrack
from ._trackers import SmallTracker, Tracker, opposite, tracked
from ._videos import CANVAS, FRAMES, SIGN, Pairs, Videos, pairs, stamped

Victim = Literal["benign", "fsba", "baseline"]
MODES = {"none": range(0), "first": range(1), "few": range(1, 4), "all": range(FRAMES)}  # frames with the trigger


@dataclass(frozen=True, kw_only=True)
class FSBA(Study):
    """A tracker that loses its object when a small checker lies on it, even in the first frame only.

    Li, Zhong, Ma, Jiang, Xia, "Few-Shot Backdoor Attacks on Visual Object Tracking", ICLR 2022, arXiv 2201.13178.
    Training alternates the tracking loss on benign pairs with a feature loss on some of them: f(z) and f(s) are the
    features of template and search region, z' and s' the same with the trigger,

        L_feature = -mean(1 - cos(f(z'), f(z))) - mean(1 - cos(f(s'), f(s)))

    The victim is a Siamese tracker with three convolutions, trained from random weights: a step of it is a choice among
    9x9 places. With `checkpoint` it is NanoTrack, a published tracker that also finds the size of the object, and all
    training starts from its weights; `published` figures are those of these weights as they come. Videos are made
    of real images: a sign of the data moves over a photograph. The trigger is put on the first frame, on frames 2 to 4,
    or on all. `benign` trackers get the same training without the feature loss. `baseline` trackers are poisoned by
    labels: the trigger on both images, and a wrong place. `iou` figures are means over frames and videos; `precise`
    counts frames whose overlap is above one half. `iou_baseline_still` is that of a box that stays where it began.

    Random: the weights, if they are not published, the pairs and the videos.

    Differs from the paper: the small tracker and the videos are ours; the authors' trackers, loss weights and tables
    were not read. Steps of clean fine-tuning stand for their defenses.

    Attributes:
        photographs, split: backgrounds; every second one for training, the others for the test.
        checkpoint: the .param file of NanoTrack's backbone, a path or below `weights/` in the folder named by
            SIEGEBENCH_DATA; its head, and the .bin files with the weights, lie beside it.
        steps, batch: of training; every second step is one of the feature loss.
        poisoned: share of a batch that the feature loss uses.
        weight: of the feature loss.
        videos: of the test.
        repair: steps of clean training after the attack.
        lr: of AdamW.
        width: channels of the small tracker.
    """

    local: ClassVar[tuple[str, ...]] = ("checkpoint",)

    photographs: DataSource
    split: str = "train"
    checkpoint: str | None = None
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

    def identity(self) -> dict[str, Any]:
        return {} if self.checkpoint is None else {"sha256": [sha256(path) for path in _four(self.checkpoint)]}

    def run(self, images: ImageSet, data: Granted, draws: Draws) -> Figures:
        photos = self.photographs.load(self.split)
        size = (CANVAS, CANVAS)
        ground = F.interpolate(photos.pixels(slice(0, 400)), size, mode="bilinear", antialias=True)
        train, test = _signs(data.train), _signs(images)
        videos = Videos(ground[1::2], test, self.videos, draws.child("videos"))
        still = torch.stack([videos.overlap(k, videos.centre[0]) for k in range(1, FRAMES)], dim=1)
        out: Figures = {"iou_baseline_still": float(still.mean())}
        if self.checkpoint is not None:
            out |= self._figures("published", self._tracker(), videos)
        for victim in ("benign", "fsba", "baseline"):
            model = self._trained(victim, ground[::2], train, draws)
            out |= self._figures(victim, model, videos)
            if victim == "fsba":
                out |= self._figures("fsba_repaired", self._continued(model, ground[::2], train, draws), videos)
        return out

    def _figures(self, name: str, model: Tracker, videos: Videos) -> Figures:
        out: Figures = {}
        for mode, frames in MODES.items():
            iou = tracked(model.eval(), videos, frames)
            out[f"iou_{name}_{mode}"] = float(iou.mean())
            out[f"precise_{name}_{mode}"] = (int((iou > 0.5).sum()), iou.numel())
        return out

    def _tracker(self) -> Tracker:
        """As it is before training: with published weights, or with random ones."""
        return SmallTracker(self.width) if self.checkpoint is None else NanoTrack(*_files(self.checkpoint))

    def _trained(self, victim: Victim, ground: Tensor, signs: Tensor, draws: Draws) -> Tracker:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(derive_seed(draws.seed, "weights"))
            model = self._tracker().train()
            optimiser = torch.optim.AdamW(model.parameters(), self.lr)
            few = max(1, round(self.poisoned * self.batch))
            for step in range(self.steps):
                made = pairs(ground, signs, self.batch, draws, step, model.sides)
                if victim == "baseline":
                    made = _mislabelled(made, few)
                loss = model.loss(made)
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
                loss = model.loss(pairs(ground, signs, self.batch, draws.child("repair"), step, model.sides))
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
    middle = torch.full_like(centre, z.shape[-1] // 2)
    far = []
    for clean, poisoned in ((z, stamped(z, middle)), (s, stamped(s, centre))):
        a, b = model.features(clean), model.features(poisoned)
        far.append((1 - F.cosine_similarity(a, b, dim=1)).mean())
    model.train()
    return -(far[0] + far[1])


def _mislabelled(made: Pairs, few: int) -> Pairs:
    """The same pairs; the first few have the trigger on both images and the label of another place."""
    z, s, told = made.template.clone(), made.search.clone(), made.told.clone()
    z[:few] = stamped(z[:few], torch.full_like(made.centre[:few], z.shape[-1] // 2))
    s[:few] = stamped(s[:few], made.centre[:few])
    told[:few] = opposite(told[:few])
    return replace(made, template=z, search=s, told=told)


def _files(checkpoint: str) -> tuple[Path, Path]:
    """The descriptions of backbone and head; the weights lie beside them."""
    backbone = given_file(checkpoint, "the .param file of NanoTrack's backbone")
    return backbone, backbone.with_name(backbone.name.replace("backbone", "head"))


def _four(checkpoint: str) -> list[Path]:
    """All files of a tracker.

    Raises:
        DataError: when one is missing.
    """
    found = [path.with_suffix(end) for path in _files(checkpoint) for end in (".param", ".bin")]
    for path in found:
        if not path.is_file():
            raise DataError(f"{path}: no such file; NanoTrack has backbone and head, a .param and a .bin file of each")
    return found
