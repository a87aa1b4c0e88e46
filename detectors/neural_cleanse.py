"""Neural Cleanse: an unusually small trigger suffices to reach a backdoored class."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.data import Granted, ImageSet
from siegebench.draws import Draws, derive_seed
from siegebench.errors import NotApplicable
from siegebench.types import Count, ModelDetector, Positive, Share, Verdict

from ._inversion import Inversion, Rules, logits_of, on_grey


@dataclass(frozen=True, kw_only=True)
class NeuralCleanse(ModelDetector):
    """Reverse-engineer a trigger for every class and search for an outlier among their sizes (Wang et al. 2019).

    For each target t, mask m in [0, 1]^(H x W) and pattern p in [0, 1]^(C x H x W), both through a tanh, minimise

        CE(f((1 - m) x + m p), t) + lambda |m|_1

    with Adam, on a fresh batch per step. lambda decreases while the trigger fails and increases while it succeeds. r_t
    is the smallest |m|_1 for which a fraction of at least `success` of a batch was classified as t. With the median and
    MAD of the r_t, index_t = (median - r_t) / (1.4826 MAD). The model is called backdoored when some index exceeds
    `threshold`. The score is the largest index; the targets are all those above the threshold.

    All targets of a group are optimised in one batch of targets x images. A target leaves the batch when its r_t no
    longer decreases.

    Random: the start of m and p, and the images of each step.

    Attributes:
        steps: at most, for each target.
        batch: clean images per step, the same for all targets.
        lr: of Adam, with betas (0.5, 0.9).
        weight: lambda at the start.
        factor: lambda is multiplied by it to increase, and divided by its power 1.5 to decrease.
        patience: consecutive steps that must succeed (or fail) before lambda changes.
        success: fraction of the batch that counts as success.
        stall: a target stops after this many steps without a mask 1 % smaller, once lambda has both increased and
            decreased.
        together: targets optimised at once; fewer need less memory.
        threshold: on the index.

    Differs from the paper: 300 steps of one batch instead of up to 1000. lambda changes by 1.5, as in later
    re-implementations. Only classes with a trigger smaller than the median count as outliers. A class for which no
    trigger is found gets the size of the whole image. The MAD is at least 0.1 % of the median, so the index stays
    finite. With few classes the fixed threshold gives false alarms on clean models: compare the scores over several
    models.
    """

    poisons: ClassVar[tuple[dict[str, Any], ...]] = ({"name": "tact"},)  # the trigger works on one class only

    steps: Count = 300
    batch: Count = 32
    lr: Positive = 0.1
    weight: Positive = 1e-3
    factor: Annotated[float, Field(gt=1)] = 1.5
    patience: Count = 5
    success: Share = 0.99
    stall: Count = 60
    together: Count = 64
    threshold: Positive = 2.0

    def judge(self, model: Classifier, data: Granted, draws: Draws) -> Verdict:
        if model.num_classes < 3:
            raise NotApplicable(f"{self!r}: needs at least 3 classes to find an outlier, not {model.num_classes}")
        r, triggers = self.inverted(model, data.clean, derive_seed(draws.seed, "neural cleanse"))
        median = r.median()
        mad = (r - median).abs().median().clamp(min=1e-3 * median)
        index = (median - r) / (1.4826 * mad)
        found = [t for t in index.argsort(descending=True).tolist() if index[t] > self.threshold]
        return Verdict(float(index.max()), len(found) > 0, tuple(found), dict(enumerate(triggers)))

    def inverted(self, model: Classifier, clean: ImageSet, seed: int) -> tuple[Tensor, Tensor]:
        """(r_t [num_classes], the triggers on mid-grey [num_classes, C, H, W]) for every target t."""
        victim = copy.deepcopy(model).eval().requires_grad_(False)
        targets = torch.arange(model.num_classes)
        parts = [self._invert(victim, clean, part, seed) for part in targets.split(self.together)]
        r, m, p = (torch.cat(column) for column in zip(*parts, strict=True))
        return r, on_grey(m, p)

    def _invert(self, model: Classifier, clean: ImageSet, targets: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """(r_t [k], the masks of this size [k, 1, H, W], their patterns [k, C, H, W]) for k targets."""
        parameter = next(model.parameters())
        device, dtype = parameter.device, parameter.dtype
        images, one = clean.images.to(device), Draws(seed, torch.zeros(1, dtype=torch.long, device=device))
        rules = Rules(self.lr, self.weight, self.factor, self.factor**1.5, self.patience, self.success)
        state = Inversion.random(images.shape[1:], targets, seed, rules, parameter)
        for step in range(1, self.steps + 1):
            x = images[one.integers(len(images), (self.batch,), step, "batch")[0]].to(dtype) / 255
            state.step(logits_of(model, seed, step), x)
            state.keep(~(state.rose & state.fell & (state.since >= self.stall)))
            if not len(state.active):
                break
        return state.best.double().cpu(), state.masks.cpu(), state.patterns.cpu()
